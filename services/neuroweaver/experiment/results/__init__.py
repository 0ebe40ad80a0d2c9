"""Results for those who ask: computed once, kept, broadcast, made anew for a past moment.

Begin with `results`. Imports `analysis`, `intake`, `storage` and `domain`.
"""
