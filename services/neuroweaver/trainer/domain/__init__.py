"""A job: its states, transitions and limits. Knows neither gRPC nor the database."""
