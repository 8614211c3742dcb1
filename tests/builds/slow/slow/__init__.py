"""Takes some seconds to build; there is nothing to it."""
