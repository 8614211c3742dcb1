"""Scripts that run on a node with nothing but its own Python: the standard library and each other, nothing else."""
