"""What the RPCs of every service use: changes made once, filters, watches, cached answers, cleanup.

Begin with `mutations`, `topics` and `watch`. Imports `database`, `auth` and `wire`.
"""
