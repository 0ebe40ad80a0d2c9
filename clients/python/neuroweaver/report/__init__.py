"""A job's report: outcome, curves, one HTML page."""
