"""Whether one version fits where another runs, and the version number that their difference calls for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, TypeVar

from neuroweaver.registry.comparison.wording import legible, listed, short
from neuroweaver.registry.domain.model import BasePin, Lineage, ModelVersion
from neuroweaver.registry.domain.versions import Level

T = TypeVar("T")

# Settings that say where things lie or what they are called, and not what is trained.
_PLACES: Final = frozenset({"output_dir", "dataset_path", "model_name", "base_model"})


@dataclass(frozen=True)
class Finding:
    """Whether one aspect of B fits where A runs. What is not known counts as fitting, and is said."""

    aspect: str
    is_compatible: bool
    explanation: str


def findings(a: ModelVersion, b: ModelVersion) -> Iterator[Finding]:
    """On base model, tokenizer, chat template, context, adapter rank and weights, in this order."""
    names, pins, ranks = labels(a, b), (pin_of(a), pin_of(b)), (rank_of(a), rank_of(b))
    yield _base_finding(*pins, names)
    for part, what in (("tokenizer_digest", "tokenizer"), ("chat_template_digest", "chat template")):
        before, after = (getattr(pin, part) for pin in pins)
        fits = not (before and after) or before == after
        yield Finding(f"base.{part}", fits, _compared(what, before, after, names, _digest))
    before, after = (pin.context_length for pin in pins)
    text = _compared("context length", before, after, names, "{:,} tokens".format)
    yield Finding("base.context_length", not 0 < after < before, text)
    if any(ranks):
        is_higher = 0 < ranks[0] < ranks[1]
        text = _compared("adapter rank", *ranks, names, "{:g}".format)
        note = " It fits only where the server admits the higher rank (vLLM: --max-lora-rank)."
        yield Finding("config.lora_r", not is_higher, text + note if is_higher else text)
    yield _weights_finding(weights_of(a), weights_of(b), names)


def labels(a: ModelVersion, b: ModelVersion) -> tuple[str, str]:
    """What tells the two apart in a text."""
    if a.name == b.name:
        return f"{a.version} (A)", f"{b.version} (B)"
    return (str(a.version), str(b.version)) if a.model_id == b.model_id else (a.name, b.name)


def pin_of(version: ModelVersion) -> BasePin:
    """Its base pin, with the name that its configuration gives where the pin has none."""
    pin = version.base or BasePin()
    return pin if pin.name else replace(pin, name=str(version.config.get("base_model") or ""))


def rank_of(version: ModelVersion) -> float:
    """The rank of its LoRA adapter; 0 if the configuration does not say."""
    rank = version.config.get("lora_r")
    return float(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) else 0.0


def weights_of(version: ModelVersion) -> list[str]:
    """The paths of its weights."""
    paths = (artifact.path for artifact in version.artifacts)
    return sorted(path for path in paths if path.lower().endswith(".safetensors"))


def is_adapter(weights: Sequence[str]) -> bool:
    """Whether they are an adapter's, by PEFT's name for them."""
    return any(PurePosixPath(path).name.startswith("adapter_model") for path in weights)


def _compared(what: str, a: T, b: T, names: Sequence[str], show: Callable[[T], str]) -> str:
    """One sentence. a, b: the values, empty or 0 where they are not recorded."""
    missing = [name for name, value in zip(names, (a, b), strict=True) if not value]
    if missing:
        return f"The {what} is not recorded for {'either' if len(missing) == 2 else missing[0]}."
    if a == b:
        return f"Both have the same {what}: {show(a)}."
    return f"The {what} differs: {show(b)} in {names[1]}, {show(a)} in {names[0]}."


def _base_finding(a: BasePin, b: BasePin, names: tuple[str, str]) -> Finding:
    # Of these two parts alone: tokenizer and template have findings of their own.
    before, after = (BasePin(name=pin.name, model_digest=pin.model_digest) for pin in (a, b))
    if part := before.is_at_odds_with(after):
        return Finding(f"base.{part}", False, _compared("base model", before, after, names, _base))
    text = _compared("base model's digest", a.model_digest, b.model_digest, names, _digest)
    if not (a.model_digest and b.model_digest) and a.name and b.name:
        text += f" Both name {legible(a.name)}, so it counts as the same."
    return Finding("base.model_digest", True, text)


def _base(pin: BasePin) -> str:
    digest = _digest(pin.model_digest) if pin.model_digest else "no digest recorded"
    return f"{legible(pin.name) or 'a base model without a name'} ({digest})"


def _digest(digest: str) -> str:
    return f"SHA-256 {short(digest)}"


def _weights_finding(before: Sequence[str], after: Sequence[str], names: tuple[str, str]) -> Finding:
    name_a, name_b = names
    is_compatible = not before or (bool(after) and _place(before) == _place(after))
    if not before:
        text = f"{name_a} has no weights to compare with."
    elif not after:
        text = f"{name_b} has no weights; {name_a} has {_kind_and_path(before)}."
    elif is_compatible:
        text = f"Both have {_kind_and_path(before)}."
    else:
        text = f"{name_b} has {_kind_and_path(after)}, {name_a} {_kind_and_path(before)}."
    return Finding("artifacts", is_compatible, text)


def _place(weights: Sequence[str]) -> tuple[bool, set[str]]:
    """Of which kind they are and in which folders; the parts of full weights may be cut in other ways."""
    return is_adapter(weights), {str(PurePosixPath(path).parent) for path in weights}


def _kind_and_path(weights: Sequence[str]) -> str:
    kind = "an adapter" if is_adapter(weights) else "full weights"
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    return f"{kind} ({legible(weights[0])}{more})"


@dataclass(frozen=True)
class _Step:
    """From A to B. paths: of what differs."""

    a: ModelVersion
    b: ModelVersion
    paths: Sequence[str]
    findings: Sequence[Finding]

    def breaks(self, *aspects: str) -> bool:
        return any(finding.aspect in aspects and not finding.is_compatible for finding in self.findings)

    def moves_weights(self) -> bool:
        """A version that has no weights yet does not move any."""
        return bool(weights_of(self.b)) and self.breaks("artifacts")

    def extends_context(self) -> bool:
        return 0 < pin_of(self.a).context_length < pin_of(self.b).context_length

    def changes_data(self) -> bool:
        a, b = self._lineages()
        is_proven_same = bool(a.dataset_digest) and a.dataset_digest == b.dataset_digest
        return "" != a.dataset_path != b.dataset_path != "" and not is_proven_same

    def revises_data(self) -> bool:
        a, b = self._lineages()
        return "" != a.dataset_digest != b.dataset_digest != ""

    def changes_seed(self) -> bool:
        return any(_is_setting(path) and path.endswith(".seed") for path in self.paths)

    def changes_files(self) -> bool:
        return any(path.startswith("artifacts.") for path in self.paths)

    def settings(self) -> list[str]:
        """What else differs in the configuration and makes it behave otherwise."""
        named_apart = {f"config.{name}" for name in {*_PLACES, "lora_r", "specialization"}}
        return [
            path
            for path in self.paths
            if _is_setting(path) and path not in named_apart and not path.endswith(".seed")
        ]

    def _lineages(self) -> tuple[Lineage, Lineage]:
        return self.a.lineage or Lineage(), self.b.lineage or Lineage()


def _is_setting(path: str) -> bool:
    return path.startswith(("config.", "config["))


# The highest level of which a line holds is recommended; every line of that level that holds is a reason.
_RULES: Final[Sequence[tuple[Level, str, Callable[[_Step], bool]]]] = (
    (Level.MAJOR, "the base model differs", lambda step: step.breaks("base.model_digest", "base.name")),
    (Level.MAJOR, "the tokenizer differs", lambda step: step.breaks("base.tokenizer_digest")),
    (Level.MAJOR, "the chat template differs", lambda step: step.breaks("base.chat_template_digest")),
    (Level.MAJOR, "the context is shorter", lambda step: step.breaks("base.context_length")),
    (Level.MAJOR, "the weights are of another kind or in another folder", _Step.moves_weights),
    (Level.MINOR, "the context is longer", _Step.extends_context),
    (Level.MINOR, "the specialisation differs", lambda step: "config.specialization" in step.paths),
    (Level.MINOR, "the adapter rank differs", lambda step: "config.lora_r" in step.paths),
    (Level.MINOR, "the training data is a different set", _Step.changes_data),
    (Level.MINOR, "the configuration differs", lambda step: bool(step.settings())),
    (Level.PATCH, "the training data was revised", _Step.revises_data),
    (Level.PATCH, "the seed differs", _Step.changes_seed),
    (Level.PATCH, "the files differ", _Step.changes_files),
)


def recommendation(
    a: ModelVersion, b: ModelVersion, paths: Sequence[str], results: Sequence[Finding]
) -> tuple[Level | None, str]:
    """The part of A's number that B calls for raising, and why; None if nothing does.

    paths: of the fields that differ. results: the findings on the two.
    """
    step = _Step(a, b, paths, results)
    holding = [(level, text) for level, text, holds in _RULES if holds(step)]
    if not holding:
        return None, "No difference calls for a new version."
    highest = holding[0][0]
    text = (
        f"{highest.value.capitalize()}, since {listed([text for level, text in holding if level is highest])}"
    )
    if highest is Level.MINOR and (settings := step.settings()):
        text += f" ({listed([legible(path) for path in settings])})"
    if a.model_id != b.model_id:
        text += f"; that is, if {b.name} became a version of {a.model_id}"
    return highest, f"{text}."
