"""Answers of reads that have not changed since they were given."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from neuroweaver.mesh.read_cache import ReadCache
from neuroweaver.registry.store import Store

# Every change of a project ends its history with a new event, in the same transaction.
HEADS: Final = "SELECT project, hash FROM audit_heads WHERE project = ANY($1)"

_BY_STORE: Final[WeakKeyDictionary[Store, ReadCache]] = WeakKeyDictionary()


def cache_of(store: Store) -> ReadCache:
    """The store's own: one for all who answer from it."""
    cache = _BY_STORE.get(store)
    if cache is None:
        cache = _BY_STORE[store] = ReadCache(store._database.revisions(HEADS))
    return cache
