"""What a model server tells of itself, wherever it runs: its health page, its metrics, its log.

Pure; imports only the domain. Begin with `health`.
"""
