"""Chats as a tokenizer lays them out, and the prompts that RLAIF asks."""
