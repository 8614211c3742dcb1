"""Prometheus and node exporters of Debian's, and a Grafana dashboard: what the service did while nobody looked."""
