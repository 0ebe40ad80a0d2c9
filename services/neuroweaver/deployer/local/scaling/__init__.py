"""How many replicas a deployment needs here."""
