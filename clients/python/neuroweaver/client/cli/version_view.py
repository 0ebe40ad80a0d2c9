"""A version on the screen."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format
from rich.text import Text

from neuroweaver.client.cli.output import console, print_facts, print_json, print_table, to_json, when
from neuroweaver.client.cli.references import name_of
from neuroweaver.client.differences import json_text, short
from neuroweaver.client.names import styled, version_state
from neuroweaver.client.text import number, plain
from neuroweaver.v1 import registry_pb2 as registry


def tell(version: registry.ModelVersion, *, as_json: bool, note: str = "") -> None:
    """What a change made: the whole version for programs, one line for people."""
    if as_json:
        print_json(to_json(version))
        return
    line = Text.assemble(name_of(version), " ", styled(version_state(version.state)))
    console().print(line.append(f"  {note}", "dim") if note else line, soft_wrap=True)


def print_version(version: registry.ModelVersion) -> None:
    """Everything about it, digests shortened."""
    print_facts(_facts(version))
    config = json_format.MessageToDict(version.config)
    if config:
        _head("config")
        print_facts((name, json_text(value)) for name, value in sorted(config.items()))
    if version.metrics:
        console().print()
        rows = [
            (
                name,
                metric_text(metric),
                _direction(metric),
                str(len(metric.samples)) if metric.samples else "",
            )
            for name, metric in sorted(version.metrics.items())
        ]
        print_table(("METRIC", "VALUE", "BETTER", "SAMPLES"), rows, empty="")
    if version.artifacts:
        console().print()
        files = [(each.path, f"{each.size_bytes:,}", short(each.digest)) for each in version.artifacts]
        print_table(("FILE", "BYTES", "SHA-256"), files, empty="")


def metric_text(metric: registry.Metric) -> str:
    text = f"{number(metric.value)} {metric.unit}".rstrip()
    if not metric.HasField("interval"):
        return text
    interval = metric.interval
    return f"{text} ({interval.confidence:.0%}: {number(interval.lower)} to {number(interval.upper)})"


def pairs(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(items))


def _facts(version: registry.ModelVersion) -> Iterable[tuple[str, str | Text]]:
    base, lineage = version.base, version.lineage
    yield "version", name_of(version)
    yield "state", styled(version_state(version.state))
    yield "aliases", Text(plain(", ".join(version.aliases)), "cyan")
    yield "description", version.description
    yield "parent", version.parent_version
    yield "created", when(version.create_time)
    yield "updated", when(version.update_time)
    yield "deleted", when(version.delete_time)
    yield "tags", pairs(version.tags.items())
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


def _direction(metric: registry.Metric) -> str:
    return {
        registry.METRIC_DIRECTION_HIGHER_IS_BETTER: "higher",
        registry.METRIC_DIRECTION_LOWER_IS_BETTER: "lower",
    }.get(metric.direction, "")


def _head(text: str) -> None:
    console().print(Text(f"\n{text}", "bold"))
