"""Who may reach whom: host keys of nodes and jump hosts, and the keys between the nodes."""
