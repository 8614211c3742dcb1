"""Real local machines for the demo and the tests: systemd inside, their own disks, two networks."""
