"""Versions and their files, from the Registry. Imports `storage` and `domain`."""
