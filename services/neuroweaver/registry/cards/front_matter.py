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
from neuroweaver.registry.domain.model import Metric, Model, ModelVersion

# The Hub refuses a card whose base model or data set has another form.
_HUB_ID: Final = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w([\w.-]{0,94}\w)?", re.ASCII)
_DATA_FILES: Final = (".jsonl", ".json", ".csv", ".parquet")
_MARKUP: Final = re.compile(r"[<>&\[\]*`|!]")
_STRING: Final = "tag:yaml.org,2002:str"


def front_matter(version: ModelVersion, model: Model) -> str:
    """Between its two lines of dashes."""
    weights, base = weights_of(version), pin_of(version).name
    is_lora = is_adapter(weights)
    fields: dict[str, Any] = {}
    if weights:
        fields["library_name"] = "peft" if is_lora else "transformers"
        fields["pipeline_tag"] = "text-generation"
    if is_hub_id(base):
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if is_lora else "finetune"
    fields["tags"] = _tags(version, model)
    dataset = version.lineage.dataset_path if version.lineage else ""
    if is_hub_id(dataset) and not dataset.endswith(_DATA_FILES):
        fields["datasets"] = [dataset]
    if own := own_metrics(version):
        fields["metrics"] = [line(name) for name in own]
        fields["model-index"] = [_model_index(version, own)]
    return f"---\n{_dumped(fields)}---"


def is_hub_id(name: str) -> bool:
    """Whether it has the form of an id on the Hub, be it there or not."""
    return _HUB_ID.fullmatch(name) is not None


def _tags(version: ModelVersion, model: Model) -> list[str]:
    labels = {**model.tags, **version.tags}
    own = [line(f"{key}:{labels[key]}" if labels[key] else key) for key in sorted(labels)]
    return ["neuroweaver", *(["lora"] if is_adapter(weights_of(version)) else []), *own]


def _model_index(version: ModelVersion, own: Mapping[str, Metric]) -> dict[str, Any]:
    # The Hub wants a data set with each result; on which rows a metric stands, a version does not record.
    dataset = {"name": line(f"evaluation of {version.name}"), "type": "private"}
    metrics = [{"type": line(name), "name": line(name), "value": own[name].value} for name in own]
    result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
    return {"name": line(version.model_id), "results": [result]}


class _Dumper(yaml.SafeDumper):
    """Puts every text with markup in double quotes, where it can be escaped."""


def _represented(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(_STRING, text, style='"' if _MARKUP.search(text) else None)


_Dumper.add_representer(str, _represented)


def _dumped(fields: Mapping[str, Any]) -> str:
    """YAML without markup: some readers know no front matter and take it for Markdown."""
    dumped = yaml.dump(dict(fields), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return _MARKUP.sub(lambda found: f"\\x{ord(found[0]):02x}", dumped)
