"""Two real local machines, for the demo and the tests."""
