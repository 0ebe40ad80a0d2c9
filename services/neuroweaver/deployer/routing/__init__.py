"""The HTTP front of deployments: which revision answers a request, and what its caller sees of that.

In the deployer's own process it stands before processes of this machine, in a cluster in pods of its own.
"""
