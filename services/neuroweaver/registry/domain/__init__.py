"""The Registry's rules: versions and bumps, states, aliases, history, webhooks. Pure.

Begin with `model`. Knows neither gRPC nor the database.
"""
