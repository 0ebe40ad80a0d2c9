"""Files of versions and base models on this machine's disk."""
