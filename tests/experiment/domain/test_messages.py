from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from experiment.figures import experiment
from neuroweaver.experiment.domain import messages
from neuroweaver.experiment.domain.model import Ramp
from neuroweaver.v1 import experiment_pb2 as pb

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_is_kept_of_an_experiment_gives_it_back():
    for ramp in (None, Ramp(2, NOW, timedelta(seconds=5)), Ramp(1, None)):
        kept = replace(
            experiment(ramp=[pb.RampStep(coverage=0.1), pb.RampStep(coverage=1.0)]),
            phases=(),
            ramp=ramp,
            layer_salt="salt",
            layer_ranges=((0, 10), (20, 30)),
            pinned={"tuned": "2.0.0"},
            baseline={"advisor": ""},
        )
        assert messages.load(*messages.dump(kept)) == kept


def test_records_of_the_first_version_are_read():
    record, _ = messages.dump(replace(experiment(), phases=()))
    hidden = (
        '{"weights": {"control": 0.5, "tuned": 0.5}, "layer_salt": "x", "layer_ranges": [[0, 10]],'
        ' "pinned": {}, "baseline": {"advisor": "1.0.0"}, "ramp": [2, 1767225600000000, 5000000]}'
    )
    found = messages.load(record, hidden)
    assert (found.layer_ranges, found.baseline) == (((0, 10),), {"advisor": "1.0.0"})
    assert found.ramp == Ramp(2, NOW, timedelta(seconds=5))
