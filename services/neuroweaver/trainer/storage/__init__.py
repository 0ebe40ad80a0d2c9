"""Jobs, their events and logs in the database. Imports `domain`."""
