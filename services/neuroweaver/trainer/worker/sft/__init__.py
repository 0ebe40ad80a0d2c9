"""Supervised fine-tuning with TRL. Begin with `finetune`."""
