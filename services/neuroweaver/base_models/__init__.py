"""Base models by name: what a name means, where its files lie on this machine, and their digests."""
