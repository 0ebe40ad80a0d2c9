"""The worker as a process: its link to the Trainer, stages, checkpoints, random state."""
