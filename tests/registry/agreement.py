"""The same calls to a real server and to the oracle, and what must agree between them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from neuroweaver.mesh.wire import status
from neuroweaver.v1 import registry_pb2 as pb
from registry.calls import safetensors, upload
from registry.oracle import (
    DEPLOYED,
    DEPRECATED,
    NEXT,
    RANGES,
    VALIDATED,
    Model,
    Number,
    Oracle,
    Refused,
    Version,
    invalid,
)
from registry.worlds import World

MODELS = ("a", "b")
ALIASES = ("production", "candidate")
NOWHERE = Number(9, 9, 9)

STATES = {f"state={pb.VersionState.Name(number)[14:]}": number for number in pb.VersionState.values()[1:]}


@dataclass(frozen=True)
class Sent:
    method: str
    request: Message
    answer: Message


class Both:
    """A server and the oracle: what one is asked, the other is asked, and they are to agree."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.oracle = Oracle()
        self.stack = AsyncExitStack()
        self.registry = self.world.run(self.world.serve(self.stack))
        self.file = self.world.run(upload(self.registry, safetensors(), "m.safetensors"))
        self.watch = self.registry.WatchModels(pb.WatchModelsRequest())
        self.seen: list[pb.ModelEvent] = []
        self.sent: list[Sent] = []
        self.touched = MODELS[0]
        self.pages: dict[str, tuple[Number, str]] = {}
        """By model: the last version that was shown, and the token of the next page."""

    def close(self) -> None:
        self.watch.cancel()
        self.world.run(self.stack.aclose())

    def ask(self, method: str, request: Message, predict: Callable[[], Any]) -> tuple[Any, Any]:
        """The answer and the prediction, or (None, None) where both are the same refusal."""
        try:
            predicted = predict()
        except Refused as refused:
            predicted = refused
        try:
            answer = self.world.run(getattr(self.registry, method)(request))
        except grpc.RpcError as error:
            answer = Refused(error.code(), status.reason(error))
        is_refusal = isinstance(predicted, Refused)
        if is_refusal or isinstance(answer, Refused):
            assert str(answer) == str(predicted), f"{method} {request}"
            return None, None
        return answer, predicted

    def change(self, method: str, request: Any, predict: Callable[[], Any]) -> tuple[Any, Any]:
        self.touched = getattr(request, "model_id", "") or request.model.model_id
        request.request_id = f"r{len(self.sent)}-{len(self.oracle.events)}-{method}"
        answer, predicted = self.ask(method, request, predict)
        if answer is not None:
            self.sent.append(Sent(method, request, answer))
            self.oracle.remember(datetime.now(UTC))
        return answer, predicted

    def number(self, model_id: str, pick: int) -> Number:
        model = self.oracle.models.get(model_id)
        choices = [*sorted(model.versions) * 3, NOWHERE] if model else [NOWHERE]
        return choices[pick % len(choices)]

    def etag(self, model_id: str, number: Number | None, mark: str) -> str:
        model = self.oracle.models.get(model_id)
        known: Any = model.versions.get(number) if model and number else model
        return {"": "", "current": known.etag if known else "7", "other": "999"}[mark]

    def expected(self, model_id: str, alias: str, mark: str, absent: str) -> str:
        model = self.oracle.models.get(model_id)
        at = model.aliases.get(alias) if model else None
        return {"": "", "current": str(at[0]) if at else absent, "other": str(NOWHERE), "gone": "-"}[mark]

    # Models.

    def begin(self) -> None:
        """What most calls need to have something to say."""
        for model_id in MODELS:
            self.register(model_id, {"team": "x"}, allow_existing=False)
            for number, has_file, state in (
                (Number(0, 9, 0), True, VALIDATED),
                (Number(1, 0, 0), True, VALIDATED),
                (Number(1, 1, 0), True, 0),
                (Number(1, 2, 0).candidate("rc"), False, 0),
            ):
                self.create(model_id, number, 0, None, has_file, state, {"team": "x"})
            self.move(model_id, 0, DEPRECATED, "")

    def register(self, model_id: str, tags: dict[str, str], *, allow_existing: bool) -> None:
        request = pb.RegisterModelRequest(
            model=pb.Model(model_id=model_id, tags=tags), allow_existing=allow_existing
        )
        self.change(
            "RegisterModel",
            request,
            lambda: self.oracle.register(model_id, tags, allow_existing=allow_existing),
        )

    def update_model(self, model_id: str, tags: dict[str, str], paths: set[str], mark: str) -> None:
        new = {"tags": tags, "description": f"change {len(self.oracle.events)}"}
        etag = self.etag(model_id, None, mark)
        request = pb.UpdateModelRequest(
            model=pb.Model(model_id=model_id, etag=etag, **new), update_mask=FieldMask(paths=sorted(paths))
        )
        changes = {name: new[name] for name in paths}
        answer, model = self.change(
            "UpdateModel", request, lambda: self.oracle.update_model(model_id, changes, etag)
        )
        if answer:
            self.agrees_on_model(answer, model_id, model)
            self.models_are_listed(["tags.team=x"])

    def delete_model(self, model_id: str) -> None:
        answer, _ = self.change(
            "DeleteModel",
            pb.DeleteModelRequest(model_id=model_id),
            lambda: self.oracle.delete_model(model_id),
        )
        if answer:
            assert answer.HasField("delete_time")

    def undelete_model(self, model_id: str) -> None:
        answer, model = self.change(
            "UndeleteModel",
            pb.UndeleteModelRequest(model_id=model_id),
            lambda: self.oracle.undelete_model(model_id),
        )
        if answer:
            assert not answer.HasField("delete_time")
            self.agrees_on_model(answer, model_id, model)

    # Versions.

    def create(self, model_id, number, level, parent, has_file, state, tags) -> None:
        base = None if parent is None else self.number(model_id, parent)
        config = {"seed": len(self.oracle.events)}
        request = pb.CreateModelVersionRequest(
            model_id=model_id,
            version=str(number or ""),
            bump=level,
            parent_version=str(base or ""),
            artifacts=[self.file] if has_file else [],
            state=state,
            tags=tags,
        )
        request.config.update(config)
        answer, version = self.change(
            "CreateModelVersion",
            request,
            lambda: self.oracle.create(
                model_id, number, level, base, has_file=has_file, state=state, tags=tags, config=config
            ),
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def bump(self, model_id: str, level: int, label: str, base: int | None) -> None:
        start = None if base is None else self.number(model_id, base)
        why = f"after {len(self.oracle.events)}"
        request = pb.BumpModelVersionRequest(
            model_id=model_id,
            level=level,
            prerelease_label=label,
            from_version=str(start or ""),
            description=why,
        )
        answer, version = self.change(
            "BumpModelVersion", request, lambda: self.oracle.bump(model_id, level, label, start, why)
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def move(self, model_id: str, pick: int, state: int, mark: str) -> None:
        number = self.number(model_id, pick)
        etag = self.etag(model_id, number, mark)
        request = pb.UpdateVersionStateRequest(
            model_id=model_id, version=str(number), state=state, etag=etag, reason="why not"
        )
        answer, version = self.change(
            "UpdateVersionState", request, lambda: self.oracle.move(model_id, number, state, etag)
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def move_on(self, model_id: str, pick: int, choice: int) -> None:
        """To a state that a transition leads to, as most callers do."""
        model = self.oracle.models[model_id]
        if shown := model.shown():
            version = shown[pick % len(shown)]
            leads_to = sorted(NEXT[version.state])
            place = sorted(model.versions).index(version.number)
            self.move(model_id, place, leads_to[choice % len(leads_to)], "current")

    def measure(self, model_id: str, pick: int, name: str, value: int) -> None:
        number = self.number(model_id, pick)
        request = pb.UpdateMetricsRequest(
            model_id=model_id, version=str(number), metrics={name: pb.Metric(value=value)}
        )
        answer, version = self.change(
            "UpdateMetrics", request, lambda: self.oracle.measure(model_id, number, {name: value})
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def delete_version(self, model_id: str, pick: int, mark: str) -> None:
        number = self.number(model_id, pick)
        etag = self.etag(model_id, number, mark)
        request = pb.DeleteModelVersionRequest(model_id=model_id, version=str(number), etag=etag)
        answer, version = self.change(
            "DeleteModelVersion", request, lambda: self.oracle.delete_version(model_id, number, etag)
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def undelete_version(self, model_id: str, pick: int, mark: str) -> None:
        number = self.number(model_id, pick)
        etag = self.etag(model_id, number, mark)
        request = pb.UndeleteModelVersionRequest(model_id=model_id, version=str(number), etag=etag)
        answer, version = self.change(
            "UndeleteModelVersion", request, lambda: self.oracle.undelete_version(model_id, number, etag)
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def rollback(self, model_id: str, pick: int, *, dry_run: bool) -> None:
        number = self.number(model_id, pick)
        level = self.recommended(model_id, number)
        request = pb.RollbackModelRequest(
            model_id=model_id, to_version=str(number), dry_run=dry_run, reason="it broke"
        )
        ask = self.ask if dry_run else self.change
        answer, version = ask(
            "RollbackModel",
            request,
            lambda: self.oracle.rollback(model_id, number, "it broke", level, dry_run=dry_run),
        )
        if answer:
            assert answer.HasField("version") is not dry_run
            assert answer.comparison.b.version == str(version.number)
            if not dry_run:
                self.agrees_on_version(answer.version, model_id, version)

    def recommended(self, model_id: str, number: Number) -> int:
        reference = pb.VersionReference(model_id=model_id, version=str(number))
        latest = pb.VersionReference(model_id=model_id, version="latest")
        answer, _ = self.ask(
            "CompareModels",
            pb.CompareModelsRequest(a=latest, b=reference),
            lambda: (self.oracle.selected(model_id, "latest"), self.oracle.version(model_id, number)),
        )
        return answer.recommended_bump if answer else 0

    # Aliases.

    def set_alias(self, model_id: str, alias: str, pick: int, mark: str, is_protected: bool | None) -> None:
        number = self.number(model_id, pick)
        expected = self.expected(model_id, alias, mark, "-")
        request = pb.SetAliasRequest(
            model_id=model_id,
            alias=alias,
            version=str(number),
            expected_version=expected,
            is_protected=is_protected,
        )
        answer, pointed = self.change(
            "SetAlias",
            request,
            lambda: self.oracle.set_alias(model_id, alias, number, expected, is_protected=is_protected),
        )
        if answer:
            assert (answer.alias, answer.version, answer.is_protected) == (alias, str(pointed[0]), pointed[1])

    def promote(self, model_id: str, alias: str, pick: int) -> None:
        """To a version that passed the gate, from where it is, as most callers do."""
        model = self.oracle.models[model_id]
        if passed := [each.number for each in model.shown() if each.state in {VALIDATED, DEPLOYED}]:
            place = sorted(model.versions).index(passed[pick % len(passed)])
            self.set_alias(model_id, alias, place, "current", None)

    def delete_alias(self, model_id: str, alias: str, mark: str) -> None:
        expected = self.expected(model_id, alias, mark, str(NOWHERE))
        request = pb.DeleteAliasRequest(model_id=model_id, alias=alias, expected_version=expected)
        answer, pointed = self.change(
            "DeleteAlias", request, lambda: self.oracle.delete_alias(model_id, alias, expected)
        )
        if answer:
            assert (answer.version, answer.is_protected) == (str(pointed[0]), pointed[1])

    def resolve(self, model_id: str, alias: str, pick: int | None) -> None:
        moment = None if pick is None else self.oracle.moments[pick % len(self.oracle.moments)]
        request = pb.ResolveAliasRequest(model_id=model_id, alias=alias)
        if moment:
            request.at.FromDatetime(moment[0])
        answer, number = self.ask(
            "ResolveAlias", request, lambda: self.oracle.resolve(model_id, alias, moment)
        )
        if answer:
            assert answer.version == str(number)

    # What is read.

    def get(self, model_id: str, selector: str | int) -> None:
        text = str(self.number(model_id, selector)) if isinstance(selector, int) else selector
        answer, version = self.ask(
            "GetModelVersion",
            pb.GetModelVersionRequest(model_id=model_id, version=text),
            lambda: self.oracle.selected(model_id, text),
        )
        if answer:
            self.agrees_on_version(answer, model_id, version)

    def list_versions(
        self, model_id: str, terms: list[str], order_by: str, size: int, show_deleted: bool
    ) -> None:
        request = pb.ListModelVersionsRequest(
            model_id=model_id, filter=" AND ".join(terms), order_by=order_by, show_deleted=show_deleted
        )
        answer, model = self.ask(
            "ListModelVersions", request, lambda: self.oracle.model(model_id, show_hidden=show_deleted)
        )
        if not answer:
            return
        wanted = [
            version
            for version in model.versions.values()
            if (show_deleted or not version.is_hidden) and all(_holds(version, term) for term in terms)
        ]
        by_time = order_by == "create_time desc"
        wanted.sort(
            key=lambda version: version.made if by_time else version.number, reverse=order_by != "version"
        )
        found = self.listed("ListModelVersions", request, "versions", size)
        assert [version.version for version in found] == [str(version.number) for version in wanted]

    def listed(self, method: str, request: Any, items: str, size: int) -> list[Any]:
        """All, in pages of that size."""
        request.page_size = size
        found: list[Any] = []
        while True:
            page = self.world.run(getattr(self.registry, method)(request))
            entries = list(getattr(page, items))
            found += entries
            if not page.next_page_token:
                return found
            assert len(entries) == size
            assert len(found) < 1000, "the pages have no end"
            request.page_token = page.next_page_token

    def turn_a_page(self, model_id: str) -> None:
        """Whatever has changed since the last one: what is there after it, once each."""
        last = self.pages.pop(model_id, (None, ""))
        request = pb.ListModelVersionsRequest(
            model_id=model_id, page_size=1, order_by="version", page_token=last[1]
        )
        answer, model = self.ask("ListModelVersions", request, lambda: self.oracle.model(model_id))
        if answer:
            after = [each.number for each in model.shown() if last[0] is None or each.number > last[0]]
            assert [version.version for version in answer.versions] == [str(number) for number in after[:1]]
            assert bool(answer.next_page_token) == (len(after) > 1)
            if answer.next_page_token:
                self.pages[model_id] = (after[0], answer.next_page_token)

    def retry(self, pick: int, is_same: bool) -> None:
        """Whatever has changed since: the first answer, and no change; refused for another request."""
        sent = self.sent[pick % len(self.sent)]
        others = [each.request for each in self.sent if each.method == sent.method and each is not sent]
        if is_same:
            answer, _ = self.ask(sent.method, sent.request, lambda: True)
            assert answer == sent.answer
        elif others:
            other: Any = type(sent.request)()
            other.CopyFrom(others[0])
            other.request_id = sent.request.request_id
            self.ask(sent.method, other, refuse)

    # What always holds.

    def the_watch_tells_what_happened(self) -> None:
        while len(self.seen) < len(self.oracle.events):
            self.seen.append(self.world.run(asyncio.wait_for(self.watch.read(), 120)))
        assert [(event.sequence, event.action) for event in self.seen] == [
            (event.sequence, event.action) for event in self.oracle.events
        ]

    def the_latest_is_the_highest(self) -> None:
        model_id = self.touched
        version, known = self.ask(
            "GetModelVersion",
            pb.GetModelVersionRequest(model_id=model_id, version="latest"),
            lambda: self.oracle.selected(model_id, "latest"),
        )
        if version:
            self.agrees_on_version(version, model_id, known)
        answer, model = self.ask(
            "GetModel", pb.GetModelRequest(model_id=model_id), lambda: self.oracle.model(model_id)
        )
        if answer:
            self.agrees_on_model(answer, model_id, model)

    def agrees_on_model(self, answer: pb.Model, model_id: str, model: Model) -> None:
        latest = model.latest()
        assert (
            answer.model_id,
            answer.description,
            dict(answer.tags),
            answer.etag,
            answer.latest_version,
        ) == (
            model_id,
            model.description,
            model.tags,
            model.etag,
            str(latest.number) if latest else "",
        )

    def agrees_on_version(self, answer: pb.ModelVersion, model_id: str, version: Version) -> None:
        assert (answer.model_id, answer.version) == (model_id, str(version.number))
        assert {
            "state": answer.state,
            "description": answer.description,
            "config": dict(answer.config),
            "metrics": {name: metric.value for name, metric in answer.metrics.items()},
            "tags": dict(answer.tags),
            "files": [artifact.digest for artifact in answer.artifacts],
            "parent": answer.parent_version,
            "is_hidden": answer.HasField("delete_time"),
            "etag": answer.etag,
            "aliases": list(answer.aliases),
        } == {
            "state": version.state,
            "description": version.description,
            "config": version.config,
            "metrics": version.metrics,
            "tags": version.tags,
            "files": [self.file.digest] * version.has_file,
            "parent": version.parent,
            "is_hidden": version.is_hidden,
            "etag": version.etag,
            "aliases": self.oracle.models[model_id].pointing_at(version.number),
        }

    def everything_agrees(self) -> None:
        for terms in ([], ["tags.team=x"], ["tags.team=x", "tags.site=y"]):
            self.models_are_listed(terms)
        for model_id, model in self.oracle.models.items():
            self.a_model_agrees(model_id, model)
        self.the_past_agrees()
        self.the_replay_agrees()
        self.the_history_is_whole()

    def the_history_is_whole(self) -> None:
        verdict = self.world.run(self.registry.VerifyAudit(pb.VerifyAuditRequest()))
        assert verdict.is_intact, verdict.explanation
        assert verdict.head.sequence == len(self.oracle.events)

    def models_are_listed(self, terms: list[str]) -> None:
        for show_deleted in (False, True):
            request = pb.ListModelsRequest(filter=" AND ".join(terms), show_deleted=show_deleted)
            assert [model.model_id for model in self.listed("ListModels", request, "models", 1)] == [
                model_id
                for model_id, model in sorted(self.oracle.models.items())
                if (show_deleted or not model.is_hidden) and all(map(_has(model.tags), terms))
            ]

    def a_model_agrees(self, model_id: str, model: Model) -> None:
        versions = pb.ListModelVersionsRequest(model_id=model_id, show_deleted=True)
        found = self.listed("ListModelVersions", versions, "versions", 100)
        assert len(found) == len(model.versions)
        for answer in found:
            self.agrees_on_version(answer, model_id, model.versions[Number.of(answer.version)])
        happened = [event for event in reversed(self.oracle.events) if event.model_id == model_id]
        for number in ("", "1.0.0"):
            history = pb.GetVersionHistoryRequest(model_id=model_id, version=number)
            told = self.listed("GetVersionHistory", history, "events", 3)
            assert [(event.sequence, event.action, event.version) for event in told] == [
                (event.sequence, event.action, event.version)
                for event in happened
                if event.version == number or not number
            ]
        if not model.is_hidden:
            listed = self.world.run(self.registry.ListAliases(pb.ListAliasesRequest(model_id=model_id)))
            assert {each.alias: (each.version, each.is_protected) for each in listed.aliases} == {
                alias: (str(at), protected) for alias, (at, protected) in model.aliases.items()
            }

    def the_past_agrees(self) -> None:
        for moment, model_id, alias in itertools.product(self.oracle.moments, self.oracle.models, ALIASES):
            request = pb.ResolveAliasRequest(model_id=model_id, alias=alias)
            request.at.FromDatetime(moment[0])
            answer, number = self.ask(
                "ResolveAlias", request, partial(self.oracle.resolve, model_id, alias, moment)
            )
            if answer:
                assert answer.version == str(number)

    def the_replay_agrees(self) -> None:
        """What the events say last of each thing is what there is."""
        models = {event.model.model_id: event.model for event in self.seen if event.HasField("model")}
        versions = {
            (event.version.model_id, event.version.version): event.version
            for event in self.seen
            if event.HasField("version")
        }
        pointed = {
            (event.alias.model_id, event.alias.alias): event.alias.version
            for event in self.seen
            if event.HasField("alias")
        }
        assert {
            model_id: (each.etag, dict(each.tags), each.HasField("delete_time"))
            for model_id, each in models.items()
        } == {
            model_id: (model.etag, model.tags, model.is_hidden)
            for model_id, model in self.oracle.models.items()
        }
        assert {
            key: (each.etag, each.state, each.HasField("delete_time")) for key, each in versions.items()
        } == {
            (model_id, str(version.number)): (version.etag, version.state, version.is_hidden)
            for model_id, model in self.oracle.models.items()
            for version in model.versions.values()
        }
        assert {key: version for key, version in pointed.items() if version} == {
            (model_id, alias): str(at)
            for model_id, model in self.oracle.models.items()
            for alias, (at, _) in model.aliases.items()
        }


def refuse() -> None:
    raise invalid()


def _has(tags: dict[str, str]) -> Callable[[str], bool]:
    return lambda term: tags.get(term.removeprefix("tags.").partition("=")[0]) == term.partition("=")[2]


def _holds(version: Version, term: str) -> bool:
    if term.startswith("range="):
        return RANGES[term.removeprefix("range=")](version.number)
    if term in STATES:
        return version.state == STATES[term]
    return _has(version.tags)(term)
