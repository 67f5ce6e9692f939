"""Is this machine fit for a run: what is there, what is not, and what to do about it."""
