"""Continuous batching over transformers: the network, its cache, sampling, adapters. Begin with `engine`."""
