"""The Trainer: jobs and their workers.

Read `domain`, `storage`, `control`, `rpc`; `data` is what jobs learn from, `worker` the process that works.
"""
