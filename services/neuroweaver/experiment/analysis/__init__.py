"""From sums to a verdict: estimates, comparisons, guardrails, forecast. Pure.

Begin with `study`. Imports `domain` and the statistics.
"""
