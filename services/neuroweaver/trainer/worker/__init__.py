"""A job's worker process: fine-tuning, feedback, reward model, PPO, validation, registering.

Begin with `pipeline`, which calls the rooms in the order of the stages. Imports the Trainer's `data` and
`domain`.
"""
