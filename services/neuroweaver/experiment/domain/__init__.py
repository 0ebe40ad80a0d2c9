"""Experiments and their rules: states, allocation, specification. Pure. Begin with `model`.

`allocation` says who owns which buckets; `mesh.wire.assignment` finds a unit's bucket, also for clients.
"""
