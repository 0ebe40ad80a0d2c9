"""All four services at work while they are killed, lose their database and disk, and meet hostile clients.

`storm.run` is told how long; record.py holds what callers saw, contention.py those who work on the same things,
hostile.py the rest. tests/e2e/test_storm.py is the short form, bench/robustness.py the long one.
"""
