"""Hostile values in every field of every RPC: each is refused by name or taken whole, and breaks nothing.

What is sent is made from the descriptors, so that a new RPC or a new field is covered by itself.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import field_mask_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from neuroweaver.mesh.database import pagination
from neuroweaver.mesh.wire import status
from neuroweaver.registry.rpc.server import SERVICE
from neuroweaver.v1 import registry_pb2 as pb
from registry.calls import digest_of, refusal, safetensors, upload

METHODS = list(SERVICE.methods)

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
}
# Of values that are well formed, but are not what there is, or are more than the disk holds.
FURTHER_REFUSALS = {
    "etag": grpc.StatusCode.ABORTED,
    "expected_version": grpc.StatusCode.ABORTED,
    "size_bytes": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Set by the server: what a caller puts there may be left unread.
OUTPUT_ONLY = {
    "Model": {"latest_version", "create_time", "update_time", "delete_time", "etag"},
    "Webhook": {"secret", "create_time", "pending", "dead", "last_error"},
}

NO_VERSIONS = (
    "1.2",
    "01.2.3",
    "1.2.3.4",
    "-1.0.0",
    "1.0.0\n",
    "\uff11.0.0",  # a full-width digit
    "1" + "0" * 400 + ".0.0",
)
LONG = "x" * 1_000_000
# Nobody may be made to store them, or to look for them.
NEVER_TAKEN = ("a\0b", "@a\0b", LONG)
STRINGS = (
    *NEVER_TAKEN,
    *NO_VERSIONS,
    "\x1b[31m",
    "\u202ecba",
    "\u0430dvisor",  # a Cyrillic letter that looks like an a
    "\uffff",
    "\U0001f4a5" * 16,
    ">=" + "9" * 18,
    "a/b",
    "../../etc/passwd",
    "' OR 1=1 --",
    "%s%(a)s{0}",
    "a=b AND ",
    "range=^",
    "@",
    "^",
    "=",
    " ",
)
INTEGERS = (-1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
DOUBLES = (math.nan, math.inf, -math.inf, 1e308, -1e308)
ENUMS = (-1, 99, 2**31 - 1)
TIMESTAMPS = [
    timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (1, -1), (1, 2**31 - 1), (253402300800, 0))
]
MASKS = [field_mask_pb2.FieldMask(paths=paths) for paths in ([""], ["*"], ["a\0b"], ["tags", "etag"], [LONG])]

VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.TYPE_STRING: STRINGS,
    FieldDescriptor.TYPE_INT32: INTEGERS[:3],
    FieldDescriptor.TYPE_INT64: INTEGERS,
    FieldDescriptor.TYPE_DOUBLE: DOUBLES,
    FieldDescriptor.TYPE_ENUM: ENUMS,
    FieldDescriptor.TYPE_BOOL: (True,),
    FieldDescriptor.TYPE_BYTES: (b"", b"\0", b"x" * 3_000_000),
}

FILE = safetensors()
ARTIFACT = pb.Artifact(path="m.safetensors", digest=digest_of(FILE), size_bytes=len(FILE))
METRIC = pb.Metric(value=1.0)


@dataclass
class World:
    """What there is to be called upon. taken: how many calls were, each of which may have used up something."""

    registry: Any
    taken: int = 0

    async def begin(self) -> None:
        await upload(self.registry, FILE, ARTIFACT.path)
        for model_id in ("advisor", "unused-0"):
            await self._register(model_id)
        for version in ("1.0.0", "0.0.0"):
            await self._create(version)
        await self._point()
        await self._listen("hook-0")

    async def mend(self, method: MethodDescriptor) -> None:
        """After a call that was taken."""
        self.taken += 1
        match method.name:
            case "DeleteModel":
                await self._register(f"unused-{self.taken}")
            case "DeleteModelVersion":
                await self._create(f"0.0.{self.taken}")
            case "DeleteAlias":
                await self._point()
            case "DeleteWebhook":
                await self._listen(f"hook-{self.taken}")
            case "CreateWebhook":  # a project has only a hundred
                for webhook in (await self.registry.ListWebhooks(pb.ListWebhooksRequest())).webhooks:
                    request = pb.DeleteWebhookRequest(webhook_id=webhook.webhook_id)
                    await self.registry.DeleteWebhook(request)

    async def _register(self, model_id: str) -> None:
        await self.registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=model_id)))

    async def _create(self, version: str) -> None:
        await self.registry.CreateModelVersion(
            pb.CreateModelVersionRequest(model_id="advisor", version=version, artifacts=[ARTIFACT])
        )

    async def _point(self) -> None:
        await self.registry.SetAlias(
            pb.SetAliasRequest(model_id="advisor", alias="candidate", version="1.0.0")
        )

    async def _listen(self, webhook_id: str) -> None:
        await self.registry.CreateWebhook(pb.CreateWebhookRequest(webhook=self.webhook(webhook_id)))

    def webhook(self, webhook_id: str) -> pb.Webhook:
        # Of a model that nothing happens to, so that nothing is sent.
        return pb.Webhook(webhook_id=webhook_id, url="http://127.0.0.1:9/", model_id="nobody")

    def requests(self, method: MethodDescriptor) -> list[Any]:
        """What a well-meaning caller sends: one message, or the messages of a stream."""
        request = self._filled(method.input_type)
        match method.name:
            case "RegisterModel":
                request.model.model_id = f"new-{self.taken}"
            case "DeleteModel":
                request.model_id = f"unused-{self.taken}"
            case "DeleteModelVersion":
                request.version = f"0.0.{self.taken}"
            case "CreateModelVersion":
                request.version = ""
            case "UpdateVersionState":
                states = (pb.VERSION_STATE_VALIDATED, pb.VERSION_STATE_DEPRECATED)
                request.state = states[self.taken % 2]
            case "RollbackModel":
                request.to_version = "0.0.0"
            case "CreateWebhook":
                request.webhook.CopyFrom(self.webhook(f"new-{self.taken}"))
            case "VerifyAudit":
                request.expected_sequence = 1
                request.expected_hash = "0" * 64
            case "UploadArtifact":
                header = pb.UploadHeader(
                    digest=ARTIFACT.digest, size_bytes=ARTIFACT.size_bytes, path=ARTIFACT.path
                )
                return [pb.UploadArtifactRequest(header=header), pb.UploadArtifactRequest(chunk=FILE)]
        return [request]

    def _filled(self, descriptor: Descriptor) -> Any:
        """By the names of the fields; the others are left out."""
        values = {
            "model_id": "advisor",
            "webhook_id": f"hook-{self.taken}",
            "version": "1.0.0",
            "alias": "candidate",
            "digest": ARTIFACT.digest,
            "path": ARTIFACT.path,
            "level": pb.BUMP_LEVEL_PATCH,
            "update_mask": field_mask_pb2.FieldMask(paths=["description", "tags"]),
            "metrics": {"loss": METRIC},
        }
        known = {name: value for name, value in values.items() if name in descriptor.fields_by_name}
        for name in {"model", "webhook", "a", "b"}.intersection(descriptor.fields_by_name):
            known[name] = self._filled(descriptor.fields_by_name[name].message_type)
        return GetMessageClass(descriptor)(**known)


@dataclass(frozen=True)
class Attack:
    """One value in one field. path: of fields, joined by full stops."""

    path: str
    value: Any
    apply: Callable[[Any], None]
    is_output: bool = False

    @property
    def root(self) -> str:
        return self.path.partition(".")[0]

    @property
    def leaf(self) -> str:
        return self.path.rpartition(".")[2]

    def into(self, part: str, enter: Callable[[Any], Any]) -> Attack:
        return Attack(
            f"{part}.{self.path}", self.value, lambda message: self.apply(enter(message)), self.is_output
        )

    def must_be_refused(self) -> bool:
        if self.is_output:
            return False
        if isinstance(self.value, bool | Message):
            return isinstance(self.value, timestamp_pb2.Timestamp | field_mask_pb2.FieldMask)
        if isinstance(self.value, float):
            return not math.isfinite(self.value)
        if isinstance(self.value, int):
            return self.value < 0 or self.value in ENUMS[1:2]
        is_version = self.leaf.endswith("version") and self.leaf != "software_version"
        return self.value in NEVER_TAKEN or (is_version and self.value in NO_VERSIONS)


def attacks(descriptor: Descriptor) -> Iterator[Attack]:
    """On every field of a message and of its parts."""
    for field in descriptor.fields:
        is_output = field.name in OUTPUT_ONLY.get(descriptor.name, ())
        for attack in _on_field(field):
            yield Attack(attack.path, attack.value, attack.apply, attack.is_output or is_output)


def _on_field(field: FieldDescriptor) -> Iterator[Attack]:
    name, part = field.name, field.message_type
    if part and part.GetOptions().map_entry:
        yield from _on_map(name, part)
    elif part and field.is_repeated:
        yield Attack(name, "too many", lambda message: getattr(message, name).extend([ARTIFACT] * 20_000))
        for attack in attacks(part):
            yield attack.into(name, lambda message: _only(getattr(message, name)))
    elif part and part.full_name not in WELL_KNOWN:
        for attack in attacks(part):
            yield attack.into(name, lambda message: getattr(message, name))
    else:
        for value in WELL_KNOWN[part.full_name] if part else VALUES[field.type]:
            yield Attack(name, value, partial(_put, field, value))


def _put(field: FieldDescriptor, value: Any, message: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).append(value)
    elif field.message_type:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _on_map(name: str, entry: Descriptor) -> Iterator[Attack]:
    plain = entry.fields_by_name["value"].message_type is None

    def put(message: Any, key: str, value: str = "") -> None:
        if plain:
            getattr(message, name)[key] = value
        else:
            getattr(message, name)[key].value = 1.0

    for text in STRINGS:
        yield Attack(name, text, lambda message, text=text: put(message, text))
        if plain:
            yield Attack(name, text, lambda message, text=text: put(message, "team", text))
    yield Attack(name, "too many", lambda message: [put(message, f"k{number}") for number in range(2000)])
    if not plain:
        for attack in attacks(entry.fields_by_name["value"].message_type):
            yield attack.into(name, lambda message: getattr(message, name)["loss"])


def _only(repeated: Any) -> Any:
    """A single element, a file that is there."""
    del repeated[:]
    element = repeated.add()
    element.CopyFrom(ARTIFACT)
    return element


def _structs() -> Iterator[struct_pb2.Struct]:
    for value in (math.nan, math.inf, 1e308, -0.0, "a\0b", LONG):
        struct = struct_pb2.Struct()
        struct.update({"key": value})
        yield struct
    for key in ("a\0b", "", LONG):
        struct = struct_pb2.Struct()
        struct.update({key: {"deep": [1, key]}})
        yield struct
    yield struct_pb2.Struct(fields={"of no kind": struct_pb2.Value()})
    for depth in (30, 200):  # the second is deeper than any message may be
        deep = struct_pb2.Struct()
        for _ in range(depth):
            outer = struct_pb2.Struct()
            outer.fields["down"].struct_value.CopyFrom(deep)
            deep = outer
        yield deep


WELL_KNOWN: dict[str, list[Any]] = {
    "google.protobuf.Timestamp": TIMESTAMPS,
    "google.protobuf.FieldMask": MASKS,
    "google.protobuf.Struct": list(_structs()),
}


async def send(registry: Any, method: MethodDescriptor, requests: Sequence[Any]) -> grpc.RpcError | None:
    """How the call was refused; None if it was not."""
    call = getattr(registry, method.name)

    async def stream() -> AsyncIterator[Any]:
        for request in requests:
            yield request

    started = call(stream() if method.client_streaming else requests[0], timeout=20)
    try:
        await (started.read() if method.server_streaming else started)
    except grpc.RpcError as error:
        return error
    started.cancel()
    return None


Last = Callable[[], tuple[int, str]]


@pytest.fixture
def last_event(registry: Any, database_url: str) -> Iterator[Last]:
    """Its number and hash, read past the server, which would verify all events before it each time."""
    connection: Any
    if database_url.startswith("sqlite:///"):
        connection, table = sqlite3.connect(database_url.removeprefix("sqlite:///")), "audit_events"
    else:
        connection, table = psycopg.connect(database_url, autocommit=True), "registry.audit_events"
    with closing(connection):
        statement = f"SELECT sequence, hash FROM {table} ORDER BY sequence DESC LIMIT 1"
        yield lambda: connection.execute(statement).fetchone()


async def head(registry: Any) -> tuple[int, str]:
    verdict = await registry.VerifyAudit(pb.VerifyAuditRequest())
    assert verdict.is_intact, verdict.explanation
    return verdict.head.sequence, verdict.head.hash


def complaint(attack: Attack, error: grpc.RpcError | None) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if error is None:
        return "was taken" if attack.must_be_refused() else ""
    code = error.code()
    if code not in REFUSALS | {FURTHER_REFUSALS.get(attack.leaf)}:
        return f"gave {code.name}: {error.details()}"
    named = [re.split(r"[.\[]", field)[0] for field, _ in status.violations(error)]
    is_unreadable = named == [""] and "is not a message" in error.details()
    if code is grpc.StatusCode.INVALID_ARGUMENT and attack.root not in named and not is_unreadable:
        return f"was refused for {named}: {error.details()}"
    return ""


def is_mutation(method: MethodDescriptor) -> bool:
    return "request_id" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_hostile_values_are_refused_by_name_and_leave_nothing(
    registry: Any, last_event: Last, method: MethodDescriptor
):
    world, complaints = World(registry), []
    await world.begin()
    # Without a hostile value it is taken: else they might all be refused for another reason.
    error = await send(registry, method, world.requests(method))
    assert error is None, error.details()
    if is_mutation(method):
        await world.mend(method)

    before = last_event()
    for attack in attacks(method.input_type):
        error = await send(registry, method, attacked(world.requests(method), attack))
        if wrong := complaint(attack, error):
            complaints.append(f"{attack.path} = {str(attack.value)[:60]!r} {wrong}")
        if error is None and is_mutation(method):
            await world.mend(method)
            before = last_event()
        elif (now := last_event()) != before:
            complaints.append(f"{attack.path} = {str(attack.value)[:60]!r} was refused and left {now}")
            before = now
    assert await head(registry) == before
    assert not complaints, "\n".join(complaints)
    # What was taken can be read again, by whatever reads it.
    await read_everything(registry)


def attacked(requests: list[Any], attack: Attack) -> list[Any]:
    """In the message of a stream that has the field."""
    holders = [request for request in requests if len(requests) > 1 and request.HasField(attack.root)]
    attack.apply((holders or requests)[0])
    return requests


async def read_everything(registry: Any) -> None:
    models = [
        model
        async for model in listed(registry.ListModels, pb.ListModelsRequest(show_deleted=True), "models")
    ]
    for model in models:
        if model.HasField("delete_time"):
            continue
        request = pb.ListModelVersionsRequest(model_id=model.model_id, show_deleted=True)
        async for version in listed(registry.ListModelVersions, request, "versions"):
            if version.HasField("delete_time"):
                continue
            named = {"model_id": model.model_id, "version": version.version}
            assert await registry.GetModelVersion(pb.GetModelVersionRequest(**named)) == version
            await registry.GetModelCard(pb.GetModelCardRequest(**named))
            reference = pb.VersionReference(**named)
            latest = pb.VersionReference(model_id=model.model_id, version="latest")
            await registry.CompareModels(pb.CompareModelsRequest(a=reference, b=latest))
        history = pb.GetVersionHistoryRequest(model_id=model.model_id)
        async for _ in listed(registry.GetVersionHistory, history, "events"):
            pass
    last, _ = await head(registry)
    events = [
        event async for event in listed(registry.ListAuditEvents, pb.ListAuditEventsRequest(), "events")
    ]
    assert [event.sequence for event in events] == list(range(1, last + 1))
    watch = registry.WatchModels(pb.WatchModelsRequest())
    told = [event.sequence for event in events if not event.action.startswith("webhook.")]
    assert [(await watch.read()).sequence for _ in told] == told
    watch.cancel()


async def listed(call: Any, request: Any, items: str) -> AsyncIterator[Any]:
    while True:
        page = await call(request)
        for item in getattr(page, items):
            yield item
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def test_what_belongs_elsewhere_is_refused(registry: Any):
    world = World(registry)
    await world.begin()
    await registry.CreateModelVersion(pb.CreateModelVersionRequest(model_id="unused-0", version="7.0.0"))
    await registry.DeleteModelVersion(pb.DeleteModelVersionRequest(model_id="advisor", version="0.0.0"))
    before = await head(registry)
    named = {"model_id": "advisor"}

    for call in (
        registry.CreateModelVersion(pb.CreateModelVersionRequest(**named, parent_version="7.0.0")),
        registry.CreateModelVersion(pb.CreateModelVersionRequest(**named, parent_version="0.0.0")),
        registry.BumpModelVersion(pb.BumpModelVersionRequest(**named, level=1, from_version="7.0.0")),
        registry.BumpModelVersion(pb.BumpModelVersionRequest(**named, level=1, from_version="0.0.0")),
        registry.RollbackModel(pb.RollbackModelRequest(**named, to_version="7.0.0")),
        registry.SetAlias(pb.SetAliasRequest(**named, alias="candidate", version="7.0.0")),
        registry.SetAlias(pb.SetAliasRequest(**named, alias="candidate", version="0.0.0")),
        registry.GetModelVersion(pb.GetModelVersionRequest(**named, version="0.0.0")),
        registry.GetModelVersion(pb.GetModelVersionRequest(model_id="unused-0", version="@candidate")),
    ):
        assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND
    assert await head(registry) == before


async def test_a_page_token_is_good_for_its_own_query_alone(registry: Any):
    world = World(registry)
    await world.begin()
    own = pb.ListModelVersionsRequest(model_id="advisor", page_size=1)
    token = (await registry.ListModelVersions(own)).next_page_token
    assert token

    for call in (
        registry.ListModels(pb.ListModelsRequest(page_token=token)),
        registry.ListAuditEvents(pb.ListAuditEventsRequest(page_token=token)),
        registry.GetVersionHistory(pb.GetVersionHistoryRequest(model_id="advisor", page_token=token)),
        *(
            registry.ListModelVersions(
                pb.ListModelVersionsRequest(**{"model_id": "advisor", "page_token": token, **other})
            )
            for other in (
                {"model_id": "unused-0"},
                {"filter": "state=TRAINED"},
                {"order_by": "version"},
                {"order_by": "create_time desc"},
                {"show_deleted": True},
                {"page_token": token[:-1]},
                {"page_token": token + "A"},
                {"page_token": token.swapcase()},
            )
        ),
    ):
        error = await refusal(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in status.violations(error)] == ["page_token"]


# A token is sealed against mistakes and not against forgery: a forger gets a page or a refusal, and no more.
FORGED = (
    ["a\0b"],
    ["x"],
    [5],
    [2**70],
    [1.5],
    [None],
    [True],
    [["deep"]],
    {"t": 1},
    [{"t": 1}],
    [{"t": 2**70}],
    [{"t": "x"}],
    [{}],
    [],
    ["x"] * 9,
    7,
)


async def test_a_forged_page_token_breaks_nothing(registry: Any):
    await World(registry).begin()
    broken = []
    for call, request, query in (
        (registry.ListModels, pb.ListModelsRequest, ("models", "default", "", "False")),
        (registry.ListAuditEvents, pb.ListAuditEventsRequest, ("audit", "default", "")),
    ):
        for key in FORGED:
            body = json.dumps(key).encode()
            token = base64.urlsafe_b64encode(pagination._digest(body, query) + body).decode()
            try:
                await call(request(page_token=token))
            except grpc.RpcError as error:
                if [field for field, _ in status.violations(error)] != ["page_token"]:
                    broken.append(f"{query[0]} {key}: {error.code().name} {error.details()}")
    assert not broken, "\n".join(broken)
