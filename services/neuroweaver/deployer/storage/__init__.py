"""What the Deployer keeps: `tables`, a transaction's `reader` and `writer`, the `store`, and the `lease`
that says who leads. Returns domain objects, never rows. Imports the domain.
"""
