"""Names and labels by which a deployment's objects are known."""
