"""Measured speed: vLLM's own benchmark on the head, kept with what it ran on, compared, judged, searched through."""
