"""One scheduling policy a module."""
