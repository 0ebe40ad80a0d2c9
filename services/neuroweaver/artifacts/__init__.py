"""Files of versions: what one is, its bytes checked by their digest, their way, and what serves it.

Read `file`, `content`, `transfer`, `serving_config`. Imports mesh.wire and generated stubs; only `transfer`
knows gRPC and messages.
"""
