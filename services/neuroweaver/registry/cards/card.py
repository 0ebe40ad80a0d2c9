"""The model card of a version: what it is, how to use it, where it comes from, how good it is.

Everything in it is recorded in the version, so that the same version gives the same bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC
from pathlib import PurePosixPath
from typing import Any, Final

from neuroweaver.registry.cards.front_matter import front_matter, is_hub_id
from neuroweaver.registry.cards.limitations import limitations
from neuroweaver.registry.cards.markdown import code, fenced, quotation, table, text
from neuroweaver.registry.comparison.compare import (
    Comparison,
    MetricDifference,
    compare,
    flattened,
    is_judged,
    own_metrics,
)
from neuroweaver.registry.comparison.compatibility import is_adapter, labels, pin_of, rank_of, weights_of
from neuroweaver.registry.comparison.wording import counted, line, number, p_value, percent, plain, signed
from neuroweaver.registry.domain.model import (
    BasePin,
    Direction,
    Interval,
    Lineage,
    Model,
    ModelVersion,
    State,
)

# Longer tables say how much they leave out.
_MAX_ROWS: Final = 500
_LONGEST_VALUE: Final = 200


_DIRECTIONS: Final = {
    Direction.HIGHER_IS_BETTER: "higher",
    Direction.LOWER_IS_BETTER: "lower",
    Direction.UNKNOWN: "not known",
}
_STATE_WARNINGS: Final = {
    State.DRAFT: "It is a draft: it is still being made.",
    State.DEPRECATED: "It is deprecated: not for new use.",
    State.ARCHIVED: "It is archived: out of use.",
}


def card(version: ModelVersion, *, model: Model, parent: ModelVersion | None = None) -> str:
    """Markdown with YAML front matter as the Hugging Face Hub reads it.

    parent: the version that it was made from, to compare with.
    """
    sections = [
        front_matter(version, model),
        *_summary(version, model),
        *_use(version),
        *_base(version),
        *_lineage(version),
        *_configuration(version),
        *_measurements(version),
        *_judgements(version),
        *_change(version, parent),
        *_files(version),
        "## Limitations",
        "\n".join(f"- {each}" for each in limitations(version)),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(version: ModelVersion, model: Model) -> Iterator[str]:
    yield f"# {text(version.model_id)} {version.version}"
    yield f"{_what(version)}{_specialised(version)}."
    if warning := _STATE_WARNINGS.get(version.state):
        yield f"**{warning}**"
    if version.delete_time:
        yield "**It was deleted; its history stays.**"
    for description in (model.description, version.description):
        if description.strip():
            yield quotation(description)
    facts = [
        ("State", version.state.value),
        ("Created", f"{version.create_time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Made from", code(version.parent_version) if version.parent_version else ""),
        ("Aliases", ", ".join(code(alias) for alias in sorted(version.aliases))),
        ("Tags", ", ".join(code(f"{key}={value}") for key, value in sorted(version.tags.items()))),
    ]
    yield _facts(facts)


def _what(version: ModelVersion) -> str:
    weights, rank = weights_of(version), rank_of(version)
    base = pin_of(version).name
    if not weights:
        kind = "A version without weights"
    elif is_adapter(weights):
        kind = f"A LoRA adapter of rank {rank:g}" if rank else "A LoRA adapter"
    else:
        kind = "A language model with full weights"
    return f"{kind} for {code(base)}" if base else kind


def _specialised(version: ModelVersion) -> str:
    specialization = str(version.config.get("specialization") or "")
    return f", specialised as {code(specialization)}" if specialization else ""


def _use(version: ModelVersion) -> Iterator[str]:
    weights = weights_of(version)
    if not weights:
        return
    yield "## How to use"
    name = line(version.name)
    yield fenced("sh", [f"neuroweaver model download {shlex.quote(name)}"])
    folder = PurePosixPath(f"{line(version.model_id)}-{version.version}", PurePosixPath(weights[0]).parent)
    base = pin_of(version).name
    if is_adapter(weights) and not is_hub_id(base):
        yield "In place of `base`, name the folder or the Hugging Face id of the base model given below."
    elif is_adapter(weights) and "/" not in base:
        yield f"In place of {code(base)}, name a folder or a Hugging Face id that holds this base model."
    yield fenced("python", list(_snippet(base, str(folder), is_lora=is_adapter(weights))))
    yield f"Or from a server that speaks OpenAI's protocol and serves it as {code(version.model_id)}:"
    yield fenced("python", [
        "from openai import OpenAI",
        "",
        "client = OpenAI()  # OPENAI_BASE_URL names the server",
        'messages = [{"role": "user", "content": "…"}]',
        f"answer = client.chat.completions.create(model={_literal(version.model_id)}, messages=messages)",
        "print(answer.choices[0].message.content)",
    ])  # fmt: skip
    if version.config.get("specialization"):
        yield (
            "It was trained with the system prompt of its specialisation: begin the messages with it. "
            "`TrainerService.ListTemplates` gives it."
        )


def _snippet(base: str, folder: str, *, is_lora: bool) -> Iterator[str]:
    if is_lora:
        yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f"base = {_literal(base if is_lora else folder)}"
    yield "tokenizer = AutoTokenizer.from_pretrained(base)"
    yield "model = AutoModelForCausalLM.from_pretrained(base)"
    if is_lora:
        yield f"model = PeftModel.from_pretrained(model, {_literal(folder)})"
    yield 'messages = [{"role": "user", "content": "…"}]'
    yield "inputs = tokenizer.apply_chat_template("
    yield '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
    yield ")"
    yield "answer = model.generate(**inputs, max_new_tokens=128)"
    yield 'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'


def _literal(value: str) -> str:
    """A string of Python, in ASCII and without markup."""
    return json.dumps(plain(value)).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _base(version: ModelVersion) -> Iterator[str]:
    pin = pin_of(version)
    if pin == BasePin():
        return
    yield "## Base model"
    yield _facts([
        ("Name", code(pin.name) if pin.name else "not recorded"),
        ("Weights, SHA-256", _recorded(pin.model_digest)),
        ("Tokenizer, SHA-256", _recorded(pin.tokenizer_digest)),
        ("Chat template, SHA-256", _recorded(pin.chat_template_digest)),
        ("Context", f"{pin.context_length:,} tokens" if pin.context_length else "not recorded"),
    ])  # fmt: skip


def _lineage(version: ModelVersion) -> Iterator[str]:
    lineage = version.lineage or Lineage()
    if lineage == Lineage():
        return
    yield "## Lineage"
    yield _facts([
        ("Training job", _recorded(lineage.training_job_id)),
        ("Data set", _recorded(lineage.dataset_path)),
        ("Data set, SHA-256", _recorded(lineage.dataset_digest)),
        ("Made by", f"NeuroWeaver {text(lineage.software_version)}" if lineage.software_version else ""),
        ("Trace", code(lineage.trace_id) if lineage.trace_id else ""),
    ])  # fmt: skip


def _configuration(version: ModelVersion) -> Iterator[str]:
    if version.config:
        settings = flattened(version.config)
        yield "## Training configuration"
        yield from _table(
            ("Setting", "Value"), [(_cut(path), _value(settings[path])) for path in sorted(settings)]
        )


def _measurements(version: ModelVersion) -> Iterator[str]:
    own = own_metrics(version)
    if measured := [name for name in own if not is_judged(name)]:
        yield "## Metrics"
        yield from _metrics_table(version, measured)


def _judgements(version: ModelVersion) -> Iterator[str]:
    judged = [name for name in own_metrics(version) if is_judged(name)]
    if not judged:
        return
    yield "## Judge's results"
    judge = str(version.config.get("feedback_model") or "")
    said = f"Given by the judge {code(judge)}." if judge else "Which judge gave them is not recorded."
    if rate := version.metrics.get("win_rate"):
        said += f" In `win_rate` a tie counts as half a win over the base model.{_chance(rate.interval)}"
    yield said
    yield from _metrics_table(version, judged)


def _chance(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.lower > 0.5:
        return " Its whole interval lies above 0.5: better than the base model by more than chance."
    if interval.upper < 0.5:
        return " Its whole interval lies below 0.5: worse than the base model by more than chance."
    return " Its interval holds 0.5: chance alone could do this."


def _metrics_table(version: ModelVersion, names: Sequence[str]) -> Iterator[str]:
    header = ("Metric", "Value", "Interval", "Base model", "Better", "Unit", "Samples")
    rows = []
    for name in names:
        metric, base = version.metrics[name], version.metrics.get(f"{name}_base")
        rows.append((
            code(name),
            number(metric.value, 4),
            _interval(metric.interval),
            number(base.value, 4) if base else "",
            _DIRECTIONS[metric.direction],
            text(metric.unit),
            f"{len(metric.samples):,}" if metric.samples else "",
        ))  # fmt: skip
    yield from _table(header, rows)


def _change(version: ModelVersion, parent: ModelVersion | None) -> Iterator[str]:
    if parent is None:
        return
    comparison = compare(parent, version)
    yield f"## Change against {text(labels(parent, version)[0])}"
    yield text(comparison.verdict)
    bump = comparison.recommended_bump
    yield f"Recommended bump: **{bump.value if bump else 'none'}**. {text(comparison.recommendation_reason)}"
    breaks = [each for each in comparison.compatibility if not each.is_compatible]
    if breaks:
        yield "It does not fit everywhere where its parent runs:"
        yield "\n".join(f"- {code(each.aspect)}: {text(each.explanation)}" for each in breaks)
    yield from _differences(comparison)


def _differences(comparison: Comparison) -> Iterator[str]:
    a, b = (text(str(version.version)) for version in (comparison.a, comparison.b))
    metrics = [each for each in comparison.metrics if each.a is not None and each.b is not None]
    if metrics:
        confidence = percent(comparison.confidence)
        header = ("Metric", a, b, "Difference", f"{confidence} interval", "p, corrected", "Judgement")
        yield from _table(header, [_difference(each) for each in metrics])
    if comparison.differences:
        rows = [(_cut(each.path), _value(each.a), _value(each.b)) for each in comparison.differences]
        yield from _table(("Field", a, b), rows)


def _difference(metric: MetricDifference) -> tuple[str, ...]:
    judgement = {True: "better", False: "worse", None: "not to be told"}[metric.is_better]
    chance = metric.corrected_p_value
    return (
        code(metric.name),
        number(metric.a or 0.0, 4),
        number(metric.b or 0.0, 4),
        "" if metric.difference is None else signed(metric.difference),
        f"{signed(metric.interval.lower)} to {signed(metric.interval.upper)}" if metric.interval else "",
        "" if chance is None else p_value(chance).removeprefix("p ").removeprefix("= "),
        text(metric.caveat) or judgement,
    )


def _files(version: ModelVersion) -> Iterator[str]:
    if version.artifacts:
        yield "## Files"
        yield from _table(
            ("Path", "Size", "SHA-256"),
            [(code(each.path), _size(each.size_bytes), code(each.digest)) for each in version.artifacts],
        )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield table(header, rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        yield f"And {counted(len(rows) - _MAX_ROWS, 'more row', 'more rows')}, which this card leaves out."


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return table(("", ""), [fact for fact in facts if fact[1]])


def _recorded(value: str) -> str:
    return code(value) if value else "not recorded"


def _value(value: Any) -> str:
    """A value of JSON."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))


def _cut(value: str) -> str:
    return code(value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{number(interval.lower)} to {number(interval.upper)} ({percent(interval.confidence)})"


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.1f} MB"
