"""What both ends of a call share: errors and statuses, channels, traces, ids, times, the environment.

A client needs no more of the mesh. Begin with `errors` and `channel`. Imports nothing else of the mesh.
"""
