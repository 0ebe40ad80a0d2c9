"""The model card of a version: what it is, how to use it, where it comes from, how good it is.

Everything in it is recorded in the version, so that the same version gives the same bytes. The text stands in
card.md.j2; here is what it is filled with.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import UTC
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import jinja2

from neuroweaver.registry.cards.front_matter import front_matter, is_hub_id
from neuroweaver.registry.cards.markdown import Markdown, code, codes, facts, markdown, quotation, table
from neuroweaver.registry.comparison.compare import (
    MetricDifference,
    compare,
    flattened,
    is_judged,
    own_metrics,
)
from neuroweaver.registry.comparison.compatibility import is_adapter, labels, pin_of, rank_of, weights_of
from neuroweaver.registry.comparison.wording import line, listed, number, p_value, percent, plain, signed
from neuroweaver.registry.domain.model import (
    BasePin,
    Direction,
    Lineage,
    Model,
    ModelVersion,
)
from neuroweaver.statistics.estimate import Interval

_LONGEST_VALUE: Final = 200
_FEW_SAMPLES: Final = 30

_DIRECTIONS: Final = {
    Direction.HIGHER_IS_BETTER: "higher",
    Direction.LOWER_IS_BETTER: "lower",
    Direction.UNKNOWN: "unknown",
}


def card(version: ModelVersion, *, model: Model, parent: ModelVersion | None = None) -> str:
    """Markdown with YAML front matter as the Hugging Face Hub reads it.

    parent: the version that it was made from, to compare with.
    """
    own, weights, base = own_metrics(version), weights_of(version), pin_of(version)
    return _template().render(
        front_matter=Markdown(front_matter(version, model)),
        version=version,
        model=model,
        weights=weights,
        is_lora=is_adapter(weights),
        rank=rank_of(version),
        base=base,
        has_base=base != BasePin(),
        base_is_hub_id=is_hub_id(base.name),
        specialization=str(version.config.get("specialization") or ""),
        created=f"{version.create_time.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        tags=[f"{key}={value}" for key, value in sorted(version.tags.items())],
        folder=_folder(version, weights),
        lineage=version.lineage if version.lineage != Lineage() else None,
        settings=[(_cut(path), _value(value)) for path, value in sorted(flattened(version.config).items())],
        metrics=_metric_rows(version, [name for name in own if not is_judged(name)]),
        judged=_metric_rows(version, [name for name in own if is_judged(name)]),
        judge=str(version.config.get("feedback_model") or ""),
        win_rate=version.metrics.get("win_rate"),
        **_change(version, parent),
        files=[(code(file.path), _size(file.size_bytes), code(file.digest)) for file in version.artifacts],
        own=own,
        unproven=[name for name, metric in own.items() if not metric.interval and len(metric.samples) < 2],
        small=[name for name, metric in own.items() if 2 <= len(metric.samples) < _FEW_SAMPLES],
        few=_FEW_SAMPLES,
        missing=[part for part, digest in _digests(base).items() if not digest],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(  # noqa: S701  # Markdown, not HTML: `finalize` escapes
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        finalize=markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "code_list": lambda names: Markdown(listed(list(map(code, names)))),
        "codes": codes,
        "facts": facts,
        "listed": listed,
        "literal": _literal,
        "quotation": quotation,
        "shell_word": lambda name: Markdown(shlex.quote(line(name))),
        "table": table,
    }
    return environment.get_template("card.md.j2")


def _folder(version: ModelVersion, weights: Sequence[str]) -> str:
    """Where a download puts the weights."""
    inner = PurePosixPath(weights[0]).parent if weights else ""
    return str(PurePosixPath(f"{line(version.model_id)}-{version.version}", inner))


def _digests(base: BasePin) -> dict[str, str]:
    return {
        "weights": base.model_digest,
        "tokenizer": base.tokenizer_digest,
        "chat template": base.chat_template_digest,
    }


def _literal(value: str) -> Markdown:
    """A string of Python, in ASCII and without markup."""
    escaped = json.dumps(plain(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markdown(escaped)


def _metric_rows(version: ModelVersion, names: Sequence[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in names:
        metric, base = version.metrics[name], version.metrics.get(f"{name}_base")
        rows.append((
            code(name),
            number(metric.value, 4),
            _interval(metric.interval),
            number(base.value, 4) if base else "",
            _DIRECTIONS[metric.direction],
            metric.unit,
            f"{len(metric.samples):,}" if metric.samples else "",
        ))  # fmt: skip
    return rows


def _change(version: ModelVersion, parent: ModelVersion | None) -> dict[str, Any]:
    if parent is None:
        return {"comparison": None}
    comparison = compare(parent, version)
    shared = [metric for metric in comparison.metrics if metric.a is not None and metric.b is not None]
    return {
        "comparison": comparison,
        "parent_label": labels(parent, version)[0],
        "confidence": percent(comparison.confidence),
        "metric_changes": list(map(_metric_change, shared)),
        "field_changes": [
            (_cut(field.path), _value(field.a), _value(field.b)) for field in comparison.differences
        ],
    }


def _metric_change(metric: MetricDifference) -> tuple[str, ...]:
    judgement = {True: "better", False: "worse", None: "inconclusive"}[metric.is_better]
    chance = metric.corrected_p_value
    return (
        code(metric.name),
        number(metric.a or 0.0, 4),
        number(metric.b or 0.0, 4),
        "" if metric.difference is None else signed(metric.difference),
        f"{signed(metric.interval.lower)} to {signed(metric.interval.upper)}" if metric.interval else "",
        Markdown("" if chance is None else p_value(chance).removeprefix("p ").removeprefix("= ")),
        metric.caveat or judgement,
    )


def _value(value: Any) -> str:
    """A value of JSON."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))


def _cut(value: str) -> Markdown:
    return code(value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{number(interval.lower)} to {number(interval.upper)} ({percent(interval.confidence)})"


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.1f} MB"
