"""The HTTP front of deployments: which revision answers a request, and what its caller sees of that.

It runs in processes of its own: one before the model servers of this machine, pods in a cluster.
"""
