"""What the facts of a version do not show, and what they warn of, for its model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from neuroweaver.registry.cards.markdown import code
from neuroweaver.registry.comparison.compare import is_judged, own_metrics
from neuroweaver.registry.comparison.compatibility import pin_of
from neuroweaver.registry.comparison.wording import listed
from neuroweaver.registry.domain.model import Lineage, Metric, ModelVersion

_FEW_SAMPLES: Final = 30
_NOT_QUANTIZED: Final = frozenset({"", "none", "QUANTIZATION_NONE", "QUANTIZATION_UNSPECIFIED"})


def limitations(version: ModelVersion) -> Iterator[str]:
    """Sentences in Markdown."""
    own = own_metrics(version)
    if own:
        yield "Nothing was measured but what stands above: not for other prompts, languages or uses."
    else:
        yield "No metric is recorded: how good it is, is not known."
    yield from _doubts_about_metrics(version, own)
    yield from _doubts_about_judge(version, own)
    yield from _gaps(version)


def _doubts_about_metrics(version: ModelVersion, own: Mapping[str, Metric]) -> Iterator[str]:
    alone = [code(name) for name, metric in own.items() if not metric.interval and len(metric.samples) < 2]
    if alone:
        have = "has" if len(alone) == 1 else "have"
        yield f"{listed(alone)} {have} neither interval nor samples: how far chance moves them is not known."
    few = [code(name) for name, metric in own.items() if 2 <= len(metric.samples) < _FEW_SAMPLES]
    if few:
        verb = "rests" if len(few) == 1 else "rest"
        yield f"{listed(few)} {verb} on fewer than {_FEW_SAMPLES} samples."
    quantization = str(version.config.get("quantization") or "")
    if quantization not in _NOT_QUANTIZED:
        yield f"It was trained over a quantised base model ({code(quantization)}): over others it can differ."


def _doubts_about_judge(version: ModelVersion, own: Mapping[str, Metric]) -> Iterator[str]:
    judge = str(version.config.get("feedback_model") or "")
    judged = any(map(is_judged, own))
    if judged and judge == "embedded":
        yield (
            "The embedded judge compares sentence embeddings with reference answers and applies a rubric; no "
            "person and no larger model has read the answers."
        )
    if version.config.get("enable_rlaif") is not True:
        return
    if not {"ppo_kl", "reward_model_accuracy"} & own.keys():
        yield (
            "Reinforcement learning from AI feedback was asked for, yet no figure of it is recorded: it may "
            "have been left out."
        )
    elif judged:
        yield (
            "The judge that scored these answers also gave the feedback that it was trained on: part of a "
            "gain can be that judge's taste."
        )


def _gaps(version: ModelVersion) -> Iterator[str]:
    pin, lineage = pin_of(version), version.lineage or Lineage()
    digests = {
        "weights": pin.model_digest,
        "tokenizer": pin.tokenizer_digest,
        "chat template": pin.chat_template_digest,
    }
    if missing := [part for part, digest in digests.items() if not digest]:
        yield f"Of the base model, no digest is recorded of the {listed(missing)}: a fit cannot be proven."
    if not lineage.dataset_digest:
        yield "The data set's digest is not recorded: what it was trained on cannot be proven."
    if not version.artifacts:
        yield "It has no files."
