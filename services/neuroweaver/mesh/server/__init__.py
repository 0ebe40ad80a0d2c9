"""A service as a process: its server, what happens around each RPC, logs and metrics.

Begin with `serve`, then `stack` and `interceptors`. Imports the rest of the mesh.
"""
