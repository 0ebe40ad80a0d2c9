"""The store over both databases."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from neuroweaver.artifacts.file import File
from neuroweaver.deployer.control.housekeeping import chores
from neuroweaver.deployer.domain import model
from neuroweaver.deployer.domain.backend import Bundle, Key, Line, Measured, Replica
from neuroweaver.deployer.domain.metrics.counts import Sample
from neuroweaver.deployer.domain.metrics.health import Health
from neuroweaver.deployer.domain.metrics.measurement import Tally
from neuroweaver.deployer.domain.metrics.thresholds import ThresholdState
from neuroweaver.deployer.domain.model import Condition, Deployment, SpecChange
from neuroweaver.deployer.domain.naming import resource_name
from neuroweaver.deployer.domain.recovery import Watch
from neuroweaver.deployer.domain.rollouts import transitions
from neuroweaver.deployer.domain.rollouts.rollout import RevisionSeen, Seen
from neuroweaver.deployer.domain.specification import Defaults, completed
from neuroweaver.deployer.storage import tables
from neuroweaver.deployer.storage.reader import RECORDS
from neuroweaver.deployer.storage.writer import Writer
from neuroweaver.mesh.database.pagination import Page
from neuroweaver.mesh.wire.origin import ChangeOrigin
from neuroweaver.v1 import deployer_pb2 as pb

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
KEY = Key("default", "advisor", "default")
ORIGIN = ChangeOrigin("default", "ada", "because")


def bundle(version: str) -> Bundle:
    return Bundle(version, (File("m.safetensors", version[0] * 64, 10),), version[0] * 64, "base", "f" * 64)


def made(key: Key = KEY, **fields) -> Deployment:
    asked = pb.DeploymentSpec(version="1.0.0", **fields)
    spec = completed(asked, key, bundle("1.0.0"), Defaults())
    return model.created(key, resource_name(key), SpecChange(asked, spec, "ada", NOW), bundle("1.0.0"))


def full() -> Deployment:
    """With everything that a deployment can have."""
    steps = [pb.CanaryStep(weight_percent=10)]
    deployment = made(rollout=pb.RolloutPolicy(canary=pb.CanaryPolicy(steps=steps))).settled(1)
    change = SpecChange(deployment.asked, deployment.spec, "bob", NOW + timedelta(seconds=1))
    deployment = deployment.respecified(change, bundle("2.0.0"))
    rollout = transitions.begin(1, 2, deployment.spec, pb.REPLACEMENT_MODE_SURGE, NOW)
    for second in range(20):
        seen = RevisionSeen(
            phases=(pb.REPLICA_PHASE_READY,),
            measured=Measured(2, requests=10 * second, latency_ms={10.0: 9 * second, math.inf: 10 * second}),
        )
        rollout = transitions.step(
            rollout, deployment.spec, Seen(stable=seen, candidate=seen), NOW + timedelta(seconds=second)
        )
    assert rollout.evidence.slices
    status = replace(
        deployment.status,
        state=pb.DEPLOYMENT_STATE_DEGRADED,
        conditions=(Condition(type="AVAILABLE", is_true=None, reason="X", message="m", time=NOW),),
        replicas=(
            Replica(
                "r-1",
                2,
                pb.REPLICA_PHASE_FAILED,
                last_exit=-9,
                loaded_versions=("1.0.0",),
                phases=((pb.REPLICA_PHASE_LOADING, timedelta(seconds=1.5)),),
                start_time=NOW,
            ),
        ),
        desired={1: 1, 2: 1},
        weights={1: 90, 2: 10},
        health=Health(
            pb.HEALTH_STATE_DEGRADED,
            "slow",
            (ThresholdState(pb.THRESHOLD_KIND_LATENCY, 2000.0, 2500.0, True, NOW, 40),),
            NOW,
        ),
        watch=Watch(unfit_since=NOW),
    )
    return replace(deployment, rollout=rollout, switched_to=Key("default", "spare", "default"), status=status)


def test_a_record_gives_back_what_was_put_in():
    deployment = full()
    assert RECORDS.load(Deployment, RECORDS.dump(deployment)) == deployment


def test_a_record_of_an_older_version_takes_defaults():
    text = RECORDS.dump(made())
    assert '"watch":' in text
    older = text.replace('"watch":', '"no_longer_known":')
    assert RECORDS.load(Deployment, older) == made()


def test_a_record_from_before_mappings_were_objects_can_be_read():
    deployment = full()
    counted = deployment.rollout.counted.stable
    plain = json.loads(RECORDS.dump(deployment))
    plain["status"] |= {"draining": [["r-1", 1767323045678901]], "desired": [[1, 1], [2, 1]]}
    plain["status"]["weights"] = []
    read = RECORDS.load(Deployment, json.dumps(plain))
    assert read.status == replace(deployment.status, draining={"r-1": NOW}, weights={})
    assert read.rollout.counted.stable.latency_ms == counted.latency_ms != {}


async def save(deployments: Writer):
    return await deployments.save(None, made())


async def test_what_is_saved_is_read_with_its_events(store):
    kept = await store.transact(ORIGIN, save)
    async with store.read("default") as deployments:
        assert await deployments.kept(KEY) == kept
        events = await deployments.events(KEY, 0, 100)
    assert [event.sequence for event in events] == list(range(1, kept.last_sequence + 1))
    assert {event.actor for event in events} == {"ada"}
    assert events[0].spec_changed.reason == "because"

    async def same(deployments: Writer):
        before = await deployments.kept(KEY)
        return await deployments.save(before, made())

    assert (await store.transact(ORIGIN, same)).last_sequence == kept.last_sequence


async def test_projects_do_not_see_each_other(store):
    await store.transact(ORIGIN, save)
    async with store.read("other") as deployments:
        assert await deployments.deployments(Page.of(0, "", ()), ()) == ([], "")
    assert [each.key for each in await store.everything()] == [KEY]


async def test_what_fails_leaves_no_trace(store):
    async def fail(deployments: Writer):
        await deployments.save(None, made())
        raise RuntimeError

    with contextlib.suppress(RuntimeError):
        await store.transact(ORIGIN, fail)
    assert await store.everything() == []


async def test_old_events_go_and_the_last_one_stays(store):
    kept = await store.transact(ORIGIN, save)
    assert (
        await chores(store.database, store.clock() + timedelta(days=91))["events"]() == kept.last_sequence - 1
    )
    async with store.read("default") as deployments:
        (last,) = await deployments.events(KEY, 0, 100)
    assert last.sequence == kept.last_sequence


async def test_deployments_that_are_gone_for_long_leave_nothing_behind(store):
    other = Key("default", "buyer", "default")

    async def save(deployments: Writer):
        for key in (KEY, other):
            kept = await deployments.save(None, made(key, labels={"team": "a"}))
            await deployments.add_lines(key, [Line("r", 1, NOW, "hello")], {"r": "1"})
            await deployments.add_tallies(key, [Tally(NOW, Measured(1), 1)])
            await deployments.add_samples(key, "router", [Sample(NOW, "", 3)])
            if key == KEY:
                await deployments.save(kept, kept.deployment.gone())

    await store.transact(ORIGIN, save)
    now = store.clock()
    for days, dropped in ((89, 0), (91, 1)):
        assert await chores(store.database, now + timedelta(days=days))["deployments"]() == dropped
    async with store.database.read() as connection:
        for table in tables.METADATA.sorted_tables:
            if "model_id" in table.c:
                found = await connection.execute(select(table.c.model_id).distinct())
                assert set(found.scalars()) == {"buyer"}, table.name


async def test_only_the_newest_lines_of_a_log_are_kept(store, monkeypatch):
    monkeypatch.setattr("neuroweaver.deployer.storage.writer.LINES_KEPT", 10)

    await store.transact(ORIGIN, save)
    for begin in range(0, 30, 6):
        lines = [Line("r", 1, NOW, f"line {number}") for number in range(begin, begin + 6)]

        async def add(deployments: Writer, lines=lines):
            await deployments.add_lines(KEY, lines, {"r": lines[-1].message})

        await store.transact(ORIGIN, add)
    async with store.read("default") as deployments:
        found = await deployments.lines(KEY, 0, 100)
        assert await deployments.line_bounds(KEY) == (21, 30)
        assert await deployments.cursors(KEY) == {"r": "line 29"}
    assert [line.message for _, line in found] == [f"line {number}" for number in range(20, 30)]


async def test_measurements_and_reports_are_kept_for_a_while(store):
    measured = Measured(1, requests=5, latency_ms={10.0: 4, math.inf: 5})

    async def save(deployments: Writer):
        await deployments.save(None, made())
        await deployments.add_tallies(KEY, [Tally(NOW, measured, 1)])
        await deployments.add_samples(KEY, "router", [Sample(NOW, "", 3, accuracy=0.5)] * 2)

    await store.transact(ORIGIN, save)
    async with store.read("default") as deployments:
        assert await deployments.tallies_after(KEY, NOW - timedelta(seconds=1)) == [Tally(NOW, measured, 1)]
        assert await deployments.last_sample(KEY) == 2
        assert await deployments.samples_after(KEY, 1) == [Sample(NOW, "", 3, accuracy=0.5)]
        assert await deployments.tallies_after(KEY, NOW) == []
        just_old = NOW + timedelta(hours=25)
    assert await chores(store.database, just_old)["measurements"]() == 0
    assert await chores(store.database, just_old + timedelta(seconds=1))["measurements"]() == 3
