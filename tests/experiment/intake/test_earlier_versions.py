"""Databases that earlier versions left, with rows, brought to this one."""

from __future__ import annotations

import importlib
import json
import shutil
import struct
import sys
import uuid
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, select

from experiment.ingesting import Intake, at, exposure, intake, sample
from experiment.serving import metric, spec
from neuroweaver.experiment.analysis.report import report
from neuroweaver.experiment.storage import tables
from neuroweaver.experiment.storage.store import Store
from neuroweaver.mesh.database.database import Database
from neuroweaver.mesh.database.migrations import migrate
from neuroweaver.statistics.moments import Moments
from neuroweaver.v1 import experiment_pb2 as pb

CAPS = pb.Winsorization(upper_quantile=0.9, calibration_units=100)
VARIANTS = ("control", "tuned")


def source(name):
    return pb.EventSource(event_name=name, aggregation=pb.UNIT_AGGREGATION_SUM)


def capped() -> pb.ExperimentSpec:
    rate = pb.RatioMetric(numerator=source("score"), denominator=source("visits"))
    return spec(
        metrics=[
            metric("score", winsorization=CAPS),
            metric("rate", ratio=rate, winsorization=CAPS),
            metric("plain", count=pb.CountMetric(event_name="visits")),
        ],
        exposure_grace={"seconds": 0},
    )


def units(count: int = 200) -> list[pb.ExperimentEvent]:
    made = [exposure(f"e{i}", f"u{i}", VARIANTS[i % 2]) for i in range(count)]
    made += [sample(f"s{i}", f"u{i}", float(i)) for i in range(count)]
    return made + [sample(f"v{i}", f"u{i}", float(i % 7), 3, "visits") for i in range(count)]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Of a service that is the Experiment service up to a migration: `package(number)` is its name."""
    made = []

    def until(number: int) -> str:
        made.append(f"earlier_{uuid.uuid4().hex}")
        versions = tmp_path / made[-1] / "migrations" / "versions"
        versions.mkdir(parents=True)
        (tmp_path / made[-1] / "__init__.py").touch()
        for file in (resources.files("neuroweaver.experiment") / "migrations" / "versions").iterdir():
            if file.name[:4].isdigit() and int(file.name[:4]) <= number:
                shutil.copy(Path(str(file)), versions)
        importlib.invalidate_caches()
        return made[-1]

    monkeypatch.syspath_prepend(tmp_path)
    yield until
    for name in made:
        sys.modules.pop(name, None)


def as_it_was(version: int, name: str, row: dict) -> dict:
    """A row as migration `version` left such: caps that were taken too early, and what they made of cells."""
    if name == "totals":
        counts = json.loads(row["counts"])
        exams = counts.pop("exams")
        if version <= 4:
            del counts["uses"], counts["carried"]
            counts["numbers"].pop()
            counts["caps"] = [[1, "score", None, 1.0, 1], [1, "rate", None, 1.0, 1]]
        else:
            counts["exams"] = [[*exam[:5], None, 1.0] for exam in exams]
        return row | {"counts": json.dumps(counts)}
    if name == "cells" and row["metric_id"] != "plain":
        first = VARIANTS.index(row["variant_id"])
        values = np.minimum(np.arange(first, 200.0, 2), 1.0)
        columns = [values] if row["metric_id"] == "score" else [values, np.arange(first, 200.0, 2) % 7]
        row |= {"observed": packed(Moments.of(np.stack(columns, 1)))}
        row |= {"cuts": packed(Moments.of(np.stack([values, values, values], 1)))}
    if version <= 4 and name == "cells":
        del row["cuts"]
    if version <= 3 and name == "event_batches":
        del row["unit_marks"]
    return row


def packed(moments: Moments) -> bytes:
    floats = moments.to_floats()
    return struct.pack(f"<{len(floats)}d", *floats)


async def copied(found: Intake, to: Database, version: int) -> None:
    async with found.database.read() as one, to.write() as other:
        for table in tables.METADATA.sorted_tables:
            for row in (await one.execute(select(table))).mappings().all():
                await other.execute(insert(table).values(as_it_was(version, table.name, dict(row))))


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_what_an_earlier_version_counted_is_counted_anew(database_url, tmp_path, package, version):
    database = Database(database_url, schema="experiment")
    async with intake(f"sqlite:///{tmp_path / 'source.db'}", capped()) as events:
        await events.take(*units())
        expected = await events.snapshot()
        await migrate(database, package(version))
        await copied(events, database, version)
    try:
        await migrate(database, "neuroweaver.experiment")
        moved = Intake(database, Store(database, clock=lambda: at(300)), now=at(300))
        before = await moved.snapshot()
        assert before.cells[1, "tuned", "score"].sample.observed.sum() == 100.0  # as that version left it
        assert {key[2] for key, cell in before.cells.items() if cell.cuts is None} == {
            "score",
            "rate",
            "plain",
        }
        assert before.groups == expected.groups
        # With version 5, what is known of the times stands; what is capped is counted anew.
        assert before.outdated == ({"score", "rate"} if version == 5 else {"score", "rate", "plain"})
        waiting = report(await moved.experiment(), before, now=moved.now).results.verdict
        assert waiting.gaps[0].blocker == pb.VERDICT_BLOCKER_RECOUNT
        assert "RecomputeResults" in waiting.reason
        assert await moved.reexamined() == 2
        assert await moved.snapshot() == expected
        assert not (await moved.recomputed()).differences
        # And it goes on from there.
        await moved.take(exposure("more", "someone", "control", 4))
        assert not (await moved.recomputed()).differences
    finally:
        await database.close()
