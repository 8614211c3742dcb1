"""What the doctor checks: each check is a small function that takes a case and gives findings."""
