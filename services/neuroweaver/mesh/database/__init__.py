"""One database a service, in two dialects: engine, migrations, pages, answers for retries.

Begin with `database`. Imports `wire`.
"""
