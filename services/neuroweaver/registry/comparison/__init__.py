"""Two versions side by side: what changed, what is better, what fits. Pure. Imports `domain`."""
