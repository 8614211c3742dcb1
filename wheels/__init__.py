"""A wheel as data: where it comes from, what is in it, whether it may pass."""
