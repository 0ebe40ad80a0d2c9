"""Whether one version fits where another runs, and the version number that their difference calls for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from neuroweaver.registry.comparison.wording import legible, listed, short
from neuroweaver.registry.domain.model import BasePin, Lineage, ModelVersion
from neuroweaver.registry.domain.versions import Level

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
    pins = pin_of(a), pin_of(b)
    names = labels(a, b)
    yield _base_finding(*pins, *names)
    yield _digest_finding("tokenizer_digest", "tokenizer", *pins, *names)
    yield _digest_finding("chat_template_digest", "chat template", *pins, *names)
    yield _context_finding(pins[0].context_length, pins[1].context_length, *names)
    if rank_of(a) or rank_of(b):
        yield _rank_finding(rank_of(a), rank_of(b), *names)
    yield _weights_finding(weights_of(a), weights_of(b), *names)


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


def _base_finding(a: BasePin, b: BasePin, name_a: str, name_b: str) -> Finding:
    # Of these two parts alone: tokenizer and template have findings of their own.
    before, after = (BasePin(name=pin.name, model_digest=pin.model_digest) for pin in (a, b))
    if part := before.is_at_odds_with(after):
        text = f"{name_b} stands on {_base_told(b)}, {name_a} on {_base_told(a)}."
        return Finding(f"base.{part}", is_compatible=False, explanation=text)
    if a.model_digest and b.model_digest:
        text = f"Both stand on the same base model, whose weights have SHA-256 {short(a.model_digest)}"
        return Finding("base.model_digest", is_compatible=True, explanation=text)
    text = _unknown("The base model's digest", a.model_digest, b.model_digest, name_a, name_b)
    if a.name and b.name:
        text += f" Both name {legible(a.name)}, so it counts as the same."
    return Finding("base.model_digest", is_compatible=True, explanation=text)


def _base_told(pin: BasePin) -> str:
    digest = f"SHA-256 {short(pin.model_digest)}" if pin.model_digest else "its digest not known"
    return f"{legible(pin.name) or 'a base model without a name'} ({digest})"


def _digest_finding(part: str, what: str, a: BasePin, b: BasePin, name_a: str, name_b: str) -> Finding:
    before, after = getattr(a, part), getattr(b, part)
    if not (before and after):
        text = _unknown(f"The {what}'s digest", before, after, name_a, name_b)
    elif before == after:
        text = f"Both have the same {what}: SHA-256 {short(before)}"
    else:
        text = f"{name_b} has another {what} (SHA-256 {short(after)}) than {name_a} ({short(before)})."
    is_other = bool(before and after) and before != after
    return Finding(f"base.{part}", is_compatible=not is_other, explanation=text)


def _context_finding(before: int, after: int, name_a: str, name_b: str) -> Finding:
    if not (before and after):
        text = _unknown("The context length", before, after, name_a, name_b)
    elif before == after:
        text = f"Both take a context of {before:,} tokens."
    else:
        text = f"{name_b} takes a context of {after:,} tokens, {name_a} one of {before:,}."
    return Finding("base.context_length", is_compatible=not 0 < after < before, explanation=text)


def _rank_finding(before: float, after: float, name_a: str, name_b: str) -> Finding:
    if not (before and after):
        text = _unknown("The adapter's rank", before, after, name_a, name_b)
    elif after > before:
        text = (
            f"The adapter of {name_b} has rank {after:g}, that of {name_a} {before:g}: it fits only where "
            "the server admits the higher rank (vLLM: --max-lora-rank)."
        )
    elif after < before:
        text = f"The adapter of {name_b} has rank {after:g}, below the {before:g} of {name_a}."
    else:
        text = f"Both adapters have rank {before:g}."
    return Finding("config.lora_r", is_compatible=not 0 < before < after, explanation=text)


def _weights_finding(before: Sequence[str], after: Sequence[str], name_a: str, name_b: str) -> Finding:
    is_compatible = not before or (bool(after) and _place(before) == _place(after))
    if not before:
        text = f"{name_a} has no weights to compare with."
    elif not after:
        text = f"{name_b} has no weights; {name_a} has {_weights_told(before)}."
    elif is_compatible:
        text = f"Both have {_weights_told(before)}."
    else:
        text = f"{name_b} has {_weights_told(after)}, {name_a} {_weights_told(before)}."
    return Finding("artifacts", is_compatible=is_compatible, explanation=text)


def _place(weights: Sequence[str]) -> tuple[bool, set[str]]:
    """Of which kind they are and in which folders; the parts of full weights may be cut in other ways."""
    return is_adapter(weights), {str(PurePosixPath(path).parent) for path in weights}


def _weights_told(weights: Sequence[str]) -> str:
    kind = "an adapter" if is_adapter(weights) else "full weights"
    more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
    return f"{kind} ({legible(weights[0])}{more})"


def _unknown(what: str, a: Any, b: Any, name_a: str, name_b: str) -> str:
    missing = [name for name, value in ((name_a, a), (name_b, b)) if not value]
    return f"{what} is not known for {'either' if len(missing) == 2 else missing[0]}."


@dataclass(frozen=True)
class _Step:
    """From A to B. paths: of what differs."""

    a: ModelVersion
    b: ModelVersion
    paths: Sequence[str]
    findings: Sequence[Finding]

    def breaks(self, *aspects: str) -> bool:
        return any(each.aspect in aspects and not each.is_compatible for each in self.findings)

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
        told_apart = {f"config.{name}" for name in {*_PLACES, "lora_r", "specialization"}}
        return [
            path
            for path in self.paths
            if _is_setting(path) and path not in told_apart and not path.endswith(".seed")
        ]

    def _lineages(self) -> tuple[Lineage, Lineage]:
        return self.a.lineage or Lineage(), self.b.lineage or Lineage()


def _is_setting(path: str) -> bool:
    return path.startswith(("config.", "config["))


# The highest level of which a line holds is recommended; every line of that level that holds is a reason.
_RULES: Final[Sequence[tuple[Level, str, Callable[[_Step], bool]]]] = (
    (Level.MAJOR, "the base model is another", lambda step: step.breaks("base.model_digest", "base.name")),
    (Level.MAJOR, "the tokenizer is another", lambda step: step.breaks("base.tokenizer_digest")),
    (Level.MAJOR, "the chat template is another", lambda step: step.breaks("base.chat_template_digest")),
    (Level.MAJOR, "the context is shorter", lambda step: step.breaks("base.context_length")),
    (Level.MAJOR, "the weights are of another kind or lie elsewhere", _Step.moves_weights),
    (Level.MINOR, "the context is longer", _Step.extends_context),
    (Level.MINOR, "the specialisation is another", lambda step: "config.specialization" in step.paths),
    (Level.MINOR, "the adapter's rank is another", lambda step: "config.lora_r" in step.paths),
    (Level.MINOR, "the training data is another set", _Step.changes_data),
    (Level.MINOR, "the configuration is another", lambda step: bool(step.settings())),
    (Level.PATCH, "the training data was revised", _Step.revises_data),
    (Level.PATCH, "the seed is another", _Step.changes_seed),
    (Level.PATCH, "the files are others", _Step.changes_files),
)


def recommendation(
    a: ModelVersion, b: ModelVersion, paths: Sequence[str], found: Sequence[Finding]
) -> tuple[Level | None, str]:
    """The part of A's number that B calls for raising, and why; None if nothing does.

    paths: of the fields that differ. found: the findings on the two.
    """
    step = _Step(a, b, paths, found)
    holding = [(level, text) for level, text, holds in _RULES if holds(step)]
    if not holding:
        return None, "Nothing differs that calls for a new version."
    highest = holding[0][0]
    text = (
        f"{highest.value.capitalize()}, since {listed([text for level, text in holding if level is highest])}"
    )
    if highest is Level.MINOR and (settings := step.settings()):
        text += f" ({listed([legible(path) for path in settings])})"
    if a.model_id != b.model_id:
        text += f"; that is, if {b.name} became a version of {a.model_id}"
    return highest, f"{text}."
