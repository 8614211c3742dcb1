"""The fabric's addresses and MTU: planned from facts, and taken back by a node itself when it is lost."""
