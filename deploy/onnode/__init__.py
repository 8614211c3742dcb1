"""Scripts that nodes run: sent there, the standard library only."""
