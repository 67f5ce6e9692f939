"""What the matrix itself costs, where the servers cost nothing: pretend GPUs, simulated cells."""
