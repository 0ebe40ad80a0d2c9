"""Experiments and their rules: states, allocation, specification. Pure. Begin with `model`."""
