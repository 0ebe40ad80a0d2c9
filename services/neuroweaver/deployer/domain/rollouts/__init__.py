"""How one revision takes over from another, step by step, and what the steps show. Pure."""
