"""Webhooks on their way: who is due, and the request, signed as `domain.webhook` says.

Imports `messages`, `storage` and `domain`.
"""
