"""The Experiment service: assignment, events, live results, a verdict, its conclusion.

Read `domain`, `analysis`, `storage`, `intake`, `results`, `rpc`.
"""
