"""The model server: one model, or one base with several adapters, behind OpenAI's HTTP API.

Read `requests`, `engine`, `work`, `http`. `http` answers before torch is imported.
"""
