from __future__ import annotations

from experiment.faults import Feed, Service, begin, check, kill_while_feeding


def test_what_was_acknowledged_survives_kills_and_counts_once(database_url, tmp_path):
    """The long form: bench/experiment_faults.py."""
    service, feed = Service(tmp_path / "home", database_url), Feed()
    now_us = begin(service)
    for after, delay_s in ((1, 0.0), (7, 0.004), (25, 0.011)):
        kill_while_feeding(service, feed, now_us, after, delay_s)
        check(service, feed, now_us)
