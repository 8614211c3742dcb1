"""Images without Docker: registries and layouts, layers as they lie over each other, the files of a distribution."""
