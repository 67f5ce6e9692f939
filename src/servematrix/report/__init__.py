"""One HTML file of a run, drawn from its records alone: no request leaves it."""
