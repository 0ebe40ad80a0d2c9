"""The model server: one model, or one base with several adapters, behind OpenAI's HTTP API."""
