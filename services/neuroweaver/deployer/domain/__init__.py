"""Deployments and their rules: specification, states, rollouts, recovery, scaling. Pure.

`backend` is what a backend must do. Begin with it and with `model`. Knows neither gRPC nor the database.
"""
