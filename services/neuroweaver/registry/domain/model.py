"""Models, their versions, and what may be done with them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from semver import Version

from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.mesh.wire.text import check_text
from neuroweaver.registry.domain.paths import kind_of
from neuroweaver.statistics.estimate import Interval

MAX_TAGS: Final = 64
MAX_METRICS: Final = 1000
# Of all metrics together: five tests of 10,000 questions each.
MAX_SAMPLES: Final = 50_000
MAX_CONFIG_BYTES: Final = 256 * 1024

_MODEL_ID: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


class State(StrEnum):
    DRAFT = "DRAFT"
    TRAINED = "TRAINED"
    VALIDATED = "VALIDATED"
    DEPLOYED = "DEPLOYED"
    DEPRECATED = "DEPRECATED"
    ARCHIVED = "ARCHIVED"


_TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.DRAFT: frozenset({State.TRAINED, State.ARCHIVED}),
    State.TRAINED: frozenset({State.VALIDATED, State.DEPRECATED, State.ARCHIVED}),
    State.VALIDATED: frozenset({State.DEPLOYED, State.DEPRECATED, State.ARCHIVED}),
    State.DEPLOYED: frozenset({State.VALIDATED, State.DEPRECATED}),
    State.DEPRECATED: frozenset({State.VALIDATED, State.ARCHIVED}),
    State.ARCHIVED: frozenset({State.DEPRECATED}),
}

_WITH_ARTIFACTS: Final = frozenset({State.TRAINED, State.VALIDATED, State.DEPLOYED})
_FIRST_STATES: Final = frozenset({State.DRAFT, State.TRAINED, State.VALIDATED})


class Direction(StrEnum):
    UNKNOWN = ""
    HIGHER_IS_BETTER = "higher"
    LOWER_IS_BETTER = "lower"


@dataclass(frozen=True, kw_only=True)
class Metric:
    value: float
    direction: Direction = Direction.UNKNOWN
    interval: Interval | None = None
    samples: tuple[float, ...] = ()
    unit: str = ""

    def check(self, path: str) -> None:
        """Raises InvalidArgument naming the part of `path` that is no finite number or no interval."""
        _check_finite(f"{path}.value", [self.value])
        _check_finite(f"{path}.samples", self.samples)
        check_text(f"{path}.unit", self.unit)
        if self.interval is not None:
            _check_finite(f"{path}.interval", [self.interval.lower, self.interval.upper])
            if self.interval.lower > self.interval.upper:
                raise InvalidArgument(f"{path}.interval", "ends before it begins")
            if not 0 < self.interval.confidence < 1:
                raise InvalidArgument(f"{path}.interval.confidence", "is not between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class BasePin:
    """The base model that an adapter fits on. Digests are SHA-256; empty where they are not known."""

    name: str = ""
    model_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
    context_length: int = 0

    def is_at_odds_with(self, other: BasePin) -> str:
        """The first part in which both are known to differ; empty if they may be the same base model.

        Names count only where a digest is missing: one model goes by several paths.
        """
        for part in ("model_digest", "tokenizer_digest", "chat_template_digest"):
            mine, others = getattr(self, part), getattr(other, part)
            if mine and others and mine != others:
                return part
        is_proven = self.model_digest and other.model_digest
        return "name" if not is_proven and self.name and other.name and self.name != other.name else ""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    training_job_id: str = ""
    dataset_digest: str = ""
    dataset_path: str = ""
    software_version: str = ""
    trace_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    path: str
    digest: str
    size_bytes: int
    media_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    model_id: str
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None
    etag: str = ""
    latest_version: str = ""
    """The version of highest precedence: read from the versions, not written with the model."""

    def check(self) -> None:
        """Raises InvalidArgument naming what a model may not hold."""
        check_model_id("model.model_id", self.model_id)
        check_text("model.description", self.description)
        check_tags("model.tags", self.tags)

    def updated(self, changes: Mapping[str, Any], etag: str) -> Model:
        """With a new `description` or `tags`. Raises Aborted if `etag` is given and stale."""
        _check_etag(etag, self.etag, f"model {self.model_id}")
        changed = replace(self, **changes)
        changed.check()
        return changed

    def hidden(self, now: datetime, *, aliases: Collection[str], deployed: str = "", etag: str = "") -> Model:
        """As DeleteModel leaves it. aliases: of the model; deployed: a version that serves traffic.

        Raises FailedPrecondition while something points at one of its versions, Aborted for a stale etag.
        """
        _check_etag(etag, self.etag, f"model {self.model_id}")
        _check_unused(self.model_id, aliases, deployed)
        return replace(self, delete_time=now)

    def undeleted(self, etag: str = "") -> Model:
        """As UndeleteModel leaves it. Raises Aborted for a stale etag."""
        _check_etag(etag, self.etag, f"model {self.model_id}")
        return replace(self, delete_time=None)

    def tombstone(self) -> dict[str, Any]:
        """What an error about it adds: when it was deleted, and the way back. Empty while it is there."""
        return _tombstone(self.delete_time, "UndeleteModel", self.model_id)


@dataclass(frozen=True, kw_only=True)
class _Content:
    description: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    base: BasePin | None = None
    lineage: Lineage | None = None
    artifacts: tuple[Artifact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Draft(_Content):
    """A version that is asked for; what is empty comes from its parent."""

    state: State | None = None

    def check(self) -> None:
        """Raises InvalidArgument naming what a version may not hold."""
        check_text("description", self.description)
        check_tags("tags", self.tags)
        check_config(self.config)
        check_metrics(self.metrics)
        check_artifacts(self.artifacts)
        for name, value in [*_texts("base", self.base), *_texts("lineage", self.lineage)]:
            check_text(name, value)
        if self.state is not None and self.state not in _FIRST_STATES:
            first = ", ".join(sorted(_FIRST_STATES))
            raise InvalidArgument("state", f"a version cannot begin as {self.state}; create it as {first}")
        if self.state not in {None, State.DRAFT} and not self.artifacts:
            raise InvalidArgument(
                "state", f"a version without artifacts cannot be {self.state}; name its files"
            )

    def as_version(
        self, model_id: str, version: Version, parent: ModelVersion | None, now: datetime
    ) -> ModelVersion:
        """The version itself: config, tags and base laid over the parent's.

        Raises InvalidArgument, or FailedPrecondition if the parent is pinned to another base model.
        """
        self.check()
        content = vars(self) | {
            "state": self.state or (State.TRAINED if self.artifacts else State.DRAFT),
            "config": {**parent.config, **self.config} if parent else self.config,
            "tags": {**parent.tags, **self.tags} if parent else self.tags,
            "base": self._base_over(parent),
            "artifacts": tuple(sorted(self.artifacts, key=lambda artifact: artifact.path)),
            "parent_version": str(parent.version) if parent else "",
        }
        created = ModelVersion(
            model_id=model_id, version=version, create_time=now, update_time=now, **content
        )
        check_tags("tags", created.tags)
        check_config(created.config)
        if created.base is None and any(is_adapter_config(artifact.path) for artifact in self.artifacts):
            raise InvalidArgument(
                "base", "is required: the files hold an adapter, which fits one base model only"
            )
        return created

    def _base_over(self, parent: ModelVersion | None) -> BasePin | None:
        inherited = parent.base if parent else None
        if self.base is None or inherited is None:
            return self.base or inherited
        part = self.base.is_at_odds_with(inherited)
        if part and parent:
            raise FailedPrecondition(
                "BASE_MISMATCH",
                f"version {parent.version} is pinned to another base model (base.{part} differs); "
                "make a version without it as its parent",
                subject=f"{parent.model_id}@{parent.version}",
            )
        return self.base


@dataclass(frozen=True, kw_only=True)
class ModelVersion(_Content):
    model_id: str
    version: Version
    state: State
    parent_version: str = ""
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None
    etag: str = ""
    aliases: tuple[str, ...] = ()
    """What points here now: read from the aliases, not written with the version."""

    @property
    def name(self) -> str:
        return f"{self.model_id}@{self.version}"

    def measured(self, metrics: Mapping[str, Metric]) -> ModelVersion:
        """With metrics added, or put in place of those of the same name. Raises InvalidArgument."""
        merged = {**self.metrics, **metrics}
        check_metrics(merged)
        return replace(self, metrics=merged)

    def moved_to(self, state: State, etag: str = "") -> ModelVersion:
        """In another state. Raises FailedPrecondition where no transition leads, Aborted for a stale etag."""
        _check_etag(etag, self.etag, f"version {self.name}")
        if state not in _TRANSITIONS[self.state]:
            allowed = ", ".join(sorted(_TRANSITIONS[self.state]))
            raise FailedPrecondition(
                "NO_SUCH_TRANSITION",
                f"from {self.state} a version moves to {allowed}, not to {state}",
                self.name,
            )
        if state in _WITH_ARTIFACTS and not self.artifacts:
            raise FailedPrecondition(
                "NO_ARTIFACTS", f"a version without artifacts cannot be {state}", self.name
            )
        if state is State.ARCHIVED:
            _check_unused(self.name, self.aliases)
        return replace(self, state=state)

    def hidden(self, now: datetime, etag: str = "") -> ModelVersion:
        """As DeleteModelVersion leaves it.

        Raises FailedPrecondition while an alias or a deployment points here, Aborted for a stale etag.
        """
        _check_etag(etag, self.etag, f"version {self.name}")
        _check_unused(self.name, self.aliases, str(self.version) if self.state is State.DEPLOYED else "")
        return replace(self, delete_time=now)

    def undeleted(self, etag: str = "") -> ModelVersion:
        """As UndeleteModelVersion leaves it. Raises Aborted for a stale etag."""
        _check_etag(etag, self.etag, f"version {self.name}")
        return replace(self, delete_time=None)

    def tombstone(self) -> dict[str, Any]:
        """As that of a model."""
        return _tombstone(self.delete_time, "UndeleteModelVersion", self.name)

    def restored(self, version: Version, now: datetime, reason: str) -> ModelVersion:
        """A new version with this one's content, as a rollback makes it. It serves no traffic yet."""
        passed = State.VALIDATED if self.state in {State.VALIDATED, State.DEPLOYED} else State.TRAINED
        return replace(
            self,
            version=version,
            state=passed if self.artifacts else State.DRAFT,
            description=f"rollback to {self.version}" + (f": {reason}" if reason else ""),
            parent_version=str(self.version),
            create_time=now,
            update_time=now,
            etag="",
            aliases=(),
        )

    def artifact(self, path: str) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.path == path), None)


def is_adapter_config(path: str) -> bool:
    return path.rpartition("/")[2] == "adapter_config.json"


def check_adapter(field: str, adapter: Mapping[str, Any], draft: Draft) -> None:
    """Holds what the version says of an adapter against the adapter's own configuration, as PEFT writes it.

    Raises InvalidArgument naming what contradicts it, or `field` if the configuration is none.
    """
    made_for, rank = adapter.get("base_model_name_or_path") or "", adapter.get("r")
    if not isinstance(made_for, str) or not isinstance(rank, int | None):
        raise InvalidArgument(field, "is not an adapter's configuration")
    pinned = draft.base.name if draft.base else ""
    # One base model goes by a hub's name here and by a folder's there; its last part tells them apart.
    if made_for and pinned and _last_part(made_for) != _last_part(pinned):
        raise InvalidArgument("base.name", f"is {pinned}, yet the adapter was made for {made_for}")
    claimed = draft.config.get("lora_r")
    if rank is not None and claimed is not None and claimed != rank:
        raise InvalidArgument("config.lora_r", f"is {claimed}, yet the adapter has rank {rank}")


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def check_model_id(name: str, model_id: str) -> None:
    """Raises InvalidArgument naming the field `name`."""
    if _MODEL_ID.fullmatch(model_id) is None:
        raise InvalidArgument(name, "is not a model id: lower-case letters, digits and -, at most 63")


def check_tags(name: str, tags: Mapping[str, str]) -> None:
    """Raises InvalidArgument naming the field `name`."""
    if len(tags) > MAX_TAGS:
        raise InvalidArgument(name, f"would be {len(tags)}; at most {MAX_TAGS} are allowed")
    for key, value in tags.items():
        check_text(f'{name}["{key}"]', value)


def check_metrics(metrics: Mapping[str, Metric]) -> None:
    """Raises InvalidArgument naming the metric."""
    if len(metrics) > MAX_METRICS:
        raise InvalidArgument("metrics", f"would be {len(metrics)}; at most {MAX_METRICS} are allowed")
    samples = sum(len(metric.samples) for metric in metrics.values())
    if samples > MAX_SAMPLES:
        raise InvalidArgument(
            "metrics", f"would hold {samples} samples; at most {MAX_SAMPLES} are allowed: leave some out"
        )
    for name, metric in metrics.items():
        metric.check(f'metrics["{name}"]')


def check_config(config: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for NaN and infinities, and for more than a configuration."""
    try:
        text = json.dumps(config, allow_nan=False)
    except ValueError as error:
        raise InvalidArgument("config", "contains a number that is not finite") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidArgument("config", f"is larger than {MAX_CONFIG_BYTES} bytes of JSON")


def check_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Raises InvalidArgument naming the artifact whose path is taken, as a file or as a folder."""
    paths: set[str] = set()
    for index, artifact in enumerate(artifacts):
        name = f"artifacts[{index}].path"
        kind_of(name, artifact.path)
        check_text(f"artifacts[{index}].media_type", artifact.media_type)
        if artifact.path in paths:
            raise InvalidArgument(name, "is given twice")
        paths.add(artifact.path)
    for index, artifact in enumerate(artifacts):
        if any(folder in paths for folder in _folders(artifact.path)):
            raise InvalidArgument(f"artifacts[{index}].path", "is in a folder that is also a file")


def _folders(path: str) -> Iterable[str]:
    parts = path.split("/")
    return ("/".join(parts[:length]) for length in range(1, len(parts)))


def _texts(name: str, part: BasePin | Lineage | None) -> Iterable[tuple[str, str]]:
    return (
        ((f"{name}.{key}", value) for key, value in vars(part).items() if isinstance(value, str))
        if part
        else ()
    )


def _check_finite(name: str, numbers: Iterable[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise InvalidArgument(name, "is not a finite number")


def _check_unused(what: str, aliases: Collection[str], deployed: str = "") -> None:
    if aliases:
        names = ", ".join(sorted(aliases))
        raise FailedPrecondition(
            "ALIAS_POINTS_HERE", f"{names} points at {what}: move or remove the alias first", what
        )
    if deployed:
        raise FailedPrecondition(
            "DEPLOYED", f"version {deployed} of {what.partition('@')[0]} is deployed: undeploy it first", what
        )


def _tombstone(delete_time: datetime | None, undelete: str, name: str) -> dict[str, Any]:
    if delete_time is None:
        return {}
    verdict = (
        f"was deleted on {delete_time:%Y-%m-%d}, and its name stays taken; "
        f"{undelete} or `neuroweaver model undelete {name}` brings it back"
    )
    return {"verdict": verdict, "metadata": {"delete_time": delete_time.isoformat()}}


def _check_etag(given: str, current: str, what: str) -> None:
    if given and given != current:
        raise Aborted("ETAG_MISMATCH", f"{what} was changed meanwhile; read it again and retry")
