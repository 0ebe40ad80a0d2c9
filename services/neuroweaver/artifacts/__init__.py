"""Files of versions: what one is, its bytes on disk, its way to the Registry and back, and what serves it.

Read `file`, `content`, `transfer`, `serving_config`. Imports mesh.wire and generated stubs; only `transfer`
knows gRPC and messages.
"""
