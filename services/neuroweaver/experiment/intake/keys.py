"""Keys of events and units: 128 bits, another one for the same id in every experiment."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.statistics.sketch import GROUPS

Keys = npt.NDArray[np.uint64]
"""(n, 2): the halves of each."""

_BYTES: Final = 16


def keys_of(project: str, test_id: str, ids: Sequence[str]) -> Keys:
    begun = blake2b(f"{project}\0{test_id}\0".encode(), digest_size=_BYTES)
    digests = []
    for each in ids:
        hashed = begun.copy()
        hashed.update(each.encode())
        digests.append(hashed.digest())
    return from_bytes(b"".join(digests))


def to_bytes(keys: Keys) -> bytes:
    return keys.astype("<u8").tobytes()


def from_bytes(data: bytes) -> Keys:
    """What `to_bytes` gave."""
    keys: Keys = np.frombuffer(data, "<u8").reshape(-1, 2).astype(np.uint64, copy=False)
    return keys


def sketch_groups(keys: Keys) -> npt.NDArray[np.int64]:
    """The random group of each unit in sketches."""
    return (keys[:, 1] >> np.uint64(56)).astype(np.int64) % GROUPS
