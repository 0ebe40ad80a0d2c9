"""The Registry: models, semantic versions, aliases, files, history, webhooks.

Read `domain`, then `storage`, then `rpc`. Other rooms each hold one concern.
"""
