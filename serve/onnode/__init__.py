"""What runs on the nodes themselves: the standard library of the system's Python, and each other."""
