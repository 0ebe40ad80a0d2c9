"""What every service shares: how processes talk, store, answer and run.

Read `wire`, then `database`, `handlers` and `server`. Imports no service and no other library.
"""
