from __future__ import annotations

import time

from neuroweaver.mesh.wire.ids import new_id


def test_ids_are_unique_and_sort_by_time():
    first = new_id()
    time.sleep(0.002)
    later = [new_id() for _ in range(1000)]

    assert len(set(later)) == 1000
    assert all(first < each for each in later)
    assert len(first) == 26
