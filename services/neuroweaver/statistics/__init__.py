"""Estimates, intervals and tests, each once, with its source. Knows neither gRPC nor the database.

`effect` compares two arms, `fixed` and `confidence_sequence` give their intervals, `multiplicity` corrects
for their number. `wilson`, `mover` and `sequential` stand alone.
"""
