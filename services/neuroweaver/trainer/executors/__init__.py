"""What starts a worker. `executor` says what it must do. Imports `domain`."""
