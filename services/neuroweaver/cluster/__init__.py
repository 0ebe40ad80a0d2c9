"""Kubernetes, for whoever runs things there: its API, connections, kinds, failures, quantities.

Begin with `api`. The Deployer's backend stands on it. Imports nothing of a service.
"""
