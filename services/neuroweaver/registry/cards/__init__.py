"""Model cards, written from a version's record. Imports `comparison` and `domain`."""
