"""Events on their way in: checked, deduplicated, joined with exposures, summed.

Begin with `ingestion`; `projection` holds the state of each unit. Imports `storage` and `domain`.
"""
