"""Real GPUs without a Spark: two machines with one card each on one host, and what is measured there."""
