"""The doctor at work: what it mends, what it measures between nodes, and what goes into a report."""
