"""The reward model: preferences, its network, its training."""
