"""A model and a version on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf import json_format
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroweaver.cli.arguments.references import name_of
from neuroweaver.cli.model.differences import json_text, short
from neuroweaver.cli.terminal.names import styled
from neuroweaver.cli.terminal.output import counted, facts, listing, print_answer, stacked, when
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import registry_pb2 as registry

_BETTER = {
    registry.METRIC_DIRECTION_HIGHER_IS_BETTER: "higher",
    registry.METRIC_DIRECTION_LOWER_IS_BETTER: "lower",
}


def print_changed(version: registry.ModelVersion, *, as_json: bool, note: str = "") -> None:
    """What a change made: the whole version for programs, one line for people."""
    print_answer(version, lambda _: version_line(version, note), as_json=as_json)


def version_line(version: registry.ModelVersion, note: str = "") -> Text:
    line = Text.assemble(name_of(version), " ", styled(version, "state"))
    return line.append(f"  {note}", "dim") if note else line


def model_facts(model: registry.Model) -> Table:
    return facts(
        [
            ("model", model.model_id),
            ("latest", model.latest_version),
            ("description", model.description),
            ("tags", pairs(model.tags)),
            ("created", when(model.create_time)),
            ("updated", when(model.update_time)),
            ("deleted", when(model.delete_time)),
        ]
    )


def version_parts(version: registry.ModelVersion) -> RenderableType:
    """Everything about it, digests shortened."""
    config = sorted(json_format.MessageToDict(version.config).items())
    values = ((name, json_text(value)) for name, value in config)
    metrics = (
        (
            name,
            metric_text(metric),
            _BETTER.get(metric.direction, ""),
            str(len(metric.samples)) if metric.samples else "",
        )
        for name, metric in sorted(version.metrics.items())
    )
    files = (
        (artifact.path, f"{artifact.size_bytes:,}", short(artifact.digest)) for artifact in version.artifacts
    )
    return stacked(
        facts(_facts(version)),
        Group(Text("config", "bold"), facts(values)) if config else None,
        listing(("METRIC", "VALUE", "BETTER", "SAMPLES"), metrics) if version.metrics else None,
        listing(("FILE", "BYTES", "SHA-256"), files) if version.artifacts else None,
    )


def metric_text(metric: registry.Metric) -> str:
    text = f"{number(metric.value)} {metric.unit}".rstrip()
    if not metric.HasField("interval"):
        return text
    interval = metric.interval
    return f"{text} ({interval.confidence:.0%}: {number(interval.lower)} to {number(interval.upper)})"


def files_note(version: registry.ModelVersion) -> str:
    size = sum(artifact.size_bytes for artifact in version.artifacts)
    return f"{counted(len(version.artifacts), 'file')}, {size:,} bytes"


def pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _facts(version: registry.ModelVersion) -> Iterator[tuple[str, str | Text]]:
    base, lineage = version.base, version.lineage
    yield "version", name_of(version)
    yield "state", styled(version, "state")
    yield "aliases", Text(plain(", ".join(version.aliases)), "cyan")
    yield "description", version.description
    yield "parent", version.parent_version
    yield "created", when(version.create_time)
    yield "updated", when(version.update_time)
    yield "deleted", when(version.delete_time)
    yield "tags", pairs(version.tags)
    yield "base model", base.name
    yield "base digest", base.model_digest
    yield "tokenizer", base.tokenizer_digest
    yield "chat template", base.chat_template_digest
    yield "context", f"{base.context_length:,} tokens" if base.context_length else ""
    yield "job", lineage.training_job_id
    yield "data", lineage.dataset_path
    yield "data digest", lineage.dataset_digest
    yield "made by", lineage.software_version
    yield "trace", lineage.trace_id
