"""Data sets and specialisations: reading, checking, counting tokens. Begin with `dataset`."""
