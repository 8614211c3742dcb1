"""What runs on the nodes while they serve: supervisors, the watch over vLLM, the guard of its API. Standard library."""
