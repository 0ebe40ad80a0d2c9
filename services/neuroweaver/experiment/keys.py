"""Short keys of events and units, which begin with their experiment's."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from neuroweaver.experiment.statistics.sketch import GROUPS

_EXPERIMENT: Final = 8
_OWN: Final = 16


def prefix_of(project: str, test_id: str) -> bytes:
    return blake2b(f"{project}\0{test_id}".encode(), digest_size=_EXPERIMENT).digest()


def keys_of(project: str, test_id: str, ids: Sequence[str]) -> list[bytes]:
    """24 bytes each. The same id has another key in every experiment."""
    prefix, salt = prefix_of(project, test_id), f"{project}\0{test_id}\0".encode()
    return [prefix + blake2b(salt + each.encode(), digest_size=_OWN).digest() for each in ids]


def span_of(project: str, test_id: str) -> tuple[bytes, bytes]:
    """Below and above all keys of an experiment."""
    prefix = prefix_of(project, test_id)
    return prefix, prefix + b"\xff" * (_OWN + 1)


def sketch_groups(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """The random group of each unit in sketches."""
    return np.fromiter((key[-1] % GROUPS for key in keys), np.int64, len(keys))
