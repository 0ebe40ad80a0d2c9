"""Experiments and their rules: states, allocation, specification. Pure. Begin with `model`.

`allocation` says who owns which buckets; a unit's bucket is found by `mesh.wire.assignment`, as a client does it.
"""
