"""Experiments, configurations and results in the database. Begin with `store`. Imports `domain`."""
