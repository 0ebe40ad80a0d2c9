"""A job's worker process: fine-tuning, feedback, reward model, PPO, validation, registering.

Begin with `pipeline`, which calls the rooms in the order of the stages over a `JobContext`; `rlaif` holds
the four stages that learn from feedback. Imports the Trainer's `data`, `domain` and `settings`.
"""
