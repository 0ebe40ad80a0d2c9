"""Events on their way in: checked, deduplicated, joined with exposures, summed.

Begin with `ingestion`; `projection` is what is known of each unit. Imports `storage` and `domain`.
"""
