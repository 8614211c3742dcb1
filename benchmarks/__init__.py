"""Measurements of the suite against what people use without it; each module is a program."""
