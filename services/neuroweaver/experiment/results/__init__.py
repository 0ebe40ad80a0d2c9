"""Results for those who ask: computed once, kept, broadcast, recomputed for a past moment.

Begin with `cache`. Imports `analysis`, `intake`, `storage` and `domain`.
"""
