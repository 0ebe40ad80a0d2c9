"""The front matter of a model card: YAML as the Hugging Face Hub reads it.

Fields and their meaning: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from neuroweaver.registry.comparison.compare import own_metrics
from neuroweaver.registry.comparison.compatibility import is_adapter, pin_of, weights_of
from neuroweaver.registry.comparison.wording import line
from neuroweaver.registry.domain.model import Model, ModelVersion

# The Hub refuses a card whose base model or data set has another form.
_HUB_ID: Final = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w([\w.-]{0,94}\w)?", re.ASCII)
_DATA_FILES: Final = (".jsonl", ".json", ".csv", ".parquet")
_MARKUP: Final = re.compile(r"[<>&\[\]*`|!]")
# PyYAML quotes what YAML 1.1 reads as something else; to YAML 1.2, which the Hub reads, 1e3 and 0o7 are
# numbers too, and to older readers y and n are booleans.
_NO_TEXT_ELSEWHERE: Final = re.compile(r"[-+.]*\d|[yn]$", re.ASCII | re.IGNORECASE)
_STRING: Final = "tag:yaml.org,2002:str"


def front_matter(version: ModelVersion, model: Model) -> str:
    """Between its two lines of dashes."""
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415  # only a card needs it

    weights, base, own = weights_of(version), pin_of(version).name, own_metrics(version)
    is_lora = is_adapter(weights)
    dataset = version.lineage.dataset_path if version.lineage else ""
    is_dataset = is_hub_id(dataset) and not dataset.endswith(_DATA_FILES)
    # The Hub wants a data set with each result; on which rows a metric stands, a version does not record.
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="private",
            dataset_name=line(f"evaluation of {version.name}"),
            metric_type=line(name),
            metric_name=line(name),
            metric_value=metric.value,
        )
        for name, metric in own.items()
    ]
    data = ModelCardData(
        library_name=("peft" if is_lora else "transformers") if weights else None,
        pipeline_tag="text-generation" if weights else None,
        base_model=base if is_hub_id(base) else None,
        base_model_relation=("adapter" if is_lora else "finetune") if is_hub_id(base) else None,
        tags=_tags(version, model),
        datasets=[dataset] if is_dataset else None,
        metrics=list(map(line, own)) or None,
        model_name=line(version.model_id) if own else None,
        eval_results=results or None,
    )
    fields: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return f"---\n{_dumped(fields)}---"


def is_hub_id(name: str) -> bool:
    """Whether it has the form of an id on the Hub, be it there or not."""
    return _HUB_ID.fullmatch(name) is not None


def _tags(version: ModelVersion, model: Model) -> list[str]:
    labels = {**model.tags, **version.tags}
    own = [line(f"{key}:{labels[key]}" if labels[key] else key) for key in sorted(labels)]
    return ["neuroweaver", *(["lora"] if is_adapter(weights_of(version)) else []), *own]


class _Dumper(yaml.SafeDumper):
    """Puts in double quotes text with markup, which can be escaped there, and what a reader may take for
    a number or a boolean.
    """


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_quoted = _MARKUP.search(text) or _NO_TEXT_ELSEWHERE.match(text)
    return dumper.represent_scalar(_STRING, text, style='"' if is_quoted else None)


_Dumper.add_representer(str, _represented)


def _dumped(fields: Mapping[str, Any]) -> str:
    """YAML without markup: some readers know no front matter and take it for Markdown."""
    dumped = yaml.dump(dict(fields), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return _MARKUP.sub(lambda mark: f"\\x{ord(mark[0]):02x}", dumped)
