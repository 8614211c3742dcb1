"""Models on the nodes: fetched on one of them, relayed to the others over the fabric, verified, listed, removed."""
