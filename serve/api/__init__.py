"""Who may use the API: its keys, its TLS, and the question that a person asks it."""
