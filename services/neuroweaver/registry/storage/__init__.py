"""Models, versions, aliases, events and deliveries in the database.

Begin with `store`: `reader` and `writer` are what a transaction sees and does. Imports `domain`.
"""
