"""Webhooks on their way: who is due, and the signed request. Imports `messages`, `storage` and `domain`."""
