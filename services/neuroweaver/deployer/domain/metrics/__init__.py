"""What was measured of a deployment, and what that says of its health."""
