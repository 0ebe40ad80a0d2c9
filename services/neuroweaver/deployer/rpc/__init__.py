"""The RPCs: from a request to its answer."""
