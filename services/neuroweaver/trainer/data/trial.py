"""Whether a job can be made of its data, tried before anything is trained.

StartTraining tries it, as far as its time goes, in a process of its own; the job itself once more, whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.trainer.data.encoding import encode
from neuroweaver.trainer.data.questions import Question, ask, choose, rated, without_system
from neuroweaver.trainer.data.rows import Example
from neuroweaver.trainer.data.specialization import load_specializations
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens, foreign_tokens
from neuroweaver.trainer.data.turns import Messages, last_exchange

if TYPE_CHECKING:
    from neuroweaver.v1 import trainer_pb2 as pb

MIN_QUESTIONS: Final = 2
# Of rows, in a message.
SHOWN: Final = 3

GoesOn = Callable[[], bool]
"""Asked before each row: whether there is time for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What of a job and its base model decides whether the data will do. Most fields are TrainingConfig's.

    context_length: in tokens, of the base model; vocab_size: rows of its embedding. 0 where unknown.
    """

    base_model: str
    dataset_path: str
    specialization: str
    max_seq_length: int
    validation_fraction: float
    seed: int
    enable_rlaif: bool
    fall_back_to_sft: bool
    rlaif_samples: int
    max_new_tokens: int
    context_length: int
    vocab_size: int

    @classmethod
    def of(cls, config: pb.TrainingConfig, *, context_length: int, vocab_size: int) -> Plan:
        """config: complete, with no default left open."""
        own = {field.name for field in fields(cls)} - {"context_length", "vocab_size"}
        values: dict[str, Any] = {name: getattr(config, name) for name in own}
        return cls(**values, context_length=context_length, vocab_size=vocab_size)

    @property
    def room(self) -> float:
        """More tokens than a prompt may have: an answer follows, and the end that a reward model reads."""
        return (self.context_length or math.inf) - self.max_new_tokens


@dataclass(frozen=True)
class Fault:
    """Why no job can be made of it. reason: as a failed job names it; field: of TrainingConfig."""

    reason: str
    field: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found. is_whole: more time would find no more. train_rows: 0 where the rows were not split.

    sequences: those that fine-tuning passes over; where not all rows were rendered, the most there can be.
    """

    faults: tuple[Fault, ...]
    is_whole: bool = False
    train_rows: int = 0
    sequences: int = 0


@dataclass(frozen=True)
class Questions:
    """chosen: the prompts of RLAIF. Passed over: those that leave no room for an answer, or are refused."""

    chosen: tuple[Question, ...]
    too_long: tuple[Question, ...]
    refused: tuple[Question, ...]


def try_rows(tokenizer: Any, rows: Iterable[Example], plan: Plan, goes_on: GoesOn) -> Trial:
    """Whether the base model can be given the rows, of which none is kept. tokenizer: as in `try_split`."""
    if tokenizer is None:
        return Trial(faults=())
    faults = tuple(_of_base_model(tokenizer, plan))
    if not faults:
        counts = [_counted(tokenizer, rows, plan, goes_on)]
        faults = (*_of_rows(counts, plan), *_of_evaluation(tokenizer, plan))
    return Trial(faults=faults)


def try_split(
    tokenizer: Any, train: Sequence[Example], held_out: Sequence[Example], plan: Plan, goes_on: GoesOn
) -> Trial:
    """Whether the job can train on the one part and measure on the other.

    tokenizer: None while the base model is still to come; what needs one is then not looked at.
    """
    parts = (train, held_out)
    faults = [*_of_split(train, held_out, plan)]
    if tokenizer is not None and not faults:
        faults += _of_base_model(tokenizer, plan)
    if tokenizer is None or faults:
        return Trial(faults=tuple(faults), is_whole=True, train_rows=len(train), sequences=_answers(train))
    counts = [_counted(tokenizer, part, plan, goes_on) for part in parts]
    all_counted = [count.rows for count in counts] == [len(part) for part in parts]
    faults += _of_rows(counts, plan)
    if all_counted and not faults:
        faults += _of_answers(counts, plan)
    faults += _of_evaluation(tokenizer, plan)
    if plan.enable_rlaif and not plan.fall_back_to_sft and not faults:
        faults += _of_questions(tokenizer, train, plan, goes_on)
    return Trial(
        faults=tuple(faults),
        is_whole=all_counted and goes_on(),
        train_rows=len(train),
        sequences=counts[0].sequences if all_counted else _answers(train),
    )


def choose_questions(tokenizer: Any, train: Sequence[Example], plan: Plan, goes_on: GoesOn) -> Questions:
    """The prompts of RLAIF: of those for which there is time, the ones that can be asked."""
    template = chat_template(tokenizer)
    too_long: list[Question] = []
    refused: list[Question] = []

    def can_be_asked(question: Question) -> bool:
        if not goes_on():
            return False
        try:
            is_short = len(template.prompt_ids(question.messages)) < plan.room
            encode(tokenizer, rated(question))
        except TemplateRefuses:
            refused.append(question)
            return False
        if not is_short:
            too_long.append(question)
        return is_short

    chosen = choose(train, plan.specialization, plan.rlaif_samples, plan.seed, can_be_asked)
    return Questions(tuple(chosen), tuple(too_long), tuple(refused))


def base_model_faults(tokenizer: Any, base_model: str, vocab_size: int) -> Iterator[Fault]:
    """What makes the base model's tokenizer of no use, whatever the rows are."""
    template = chat_template(tokenizer)
    turns = [{"role": role, "content": "a word"} for role in ("user", "assistant", "user")]
    try:
        written = template.prompt_ids(turns)
    except TemplateRefuses:
        written = []  # by the rows it will show what it takes
    if tokenizer.pad_token_id is None:
        reason = f"the tokenizer of {base_model} has neither a padding nor an end-of-sequence token"
        yield Fault("BASE_MODEL_UNAVAILABLE", "base_model", reason)
        return
    ids = {*written, *template.ends(None), tokenizer.pad_token_id}
    if foreign := foreign_tokens(tokenizer, ids, vocab_size):
        reason = (
            f"chats of base model {base_model} are written with {foreign}, and its embedding has "
            f"{vocab_size} rows: save it with an embedding of its tokenizer's size"
        )
        yield Fault("BASE_MODEL_UNAVAILABLE", "base_model", reason)


def unknown_words(counts: Sequence[TokenCount], base_model: str) -> Iterator[Fault]:
    """The fault of a tokenizer that makes nothing of any answer."""
    if sum(count.rows - count.refused for count in counts) and not any(count.knows_words for count in counts):
        reason = (
            f"the tokenizer of {base_model} knows no word of the answers: its vocabulary fits other texts"
        )
        yield Fault("BASE_MODEL_UNAVAILABLE", "base_model", reason)


def _counted(tokenizer: Any, rows: Iterable[Example], plan: Plan, goes_on: GoesOn) -> TokenCount:
    in_time = takewhile(lambda _: goes_on(), rows)
    return count_tokens(tokenizer, in_time, plan.max_seq_length, vocab_size=plan.vocab_size)


def _of_base_model(tokenizer: Any, plan: Plan) -> Iterator[Fault]:
    return base_model_faults(tokenizer, plan.base_model, plan.vocab_size)


def _of_split(train: Sequence[Example], held_out: Sequence[Example], plan: Plan) -> Iterator[Fault]:
    if not train or not held_out:
        reason = f"{plan.dataset_path} holds one conversation, with none left to measure on"
        yield Fault("NO_USABLE_ROWS", "dataset_path", reason)
        return
    questions = sum(last_exchange(example) is not None for example in train)
    if plan.enable_rlaif and not plan.fall_back_to_sft and questions < MIN_QUESTIONS:
        reason = (
            f"RLAIF needs {MIN_QUESTIONS} questions with answers among the {len(train)} rows to learn from, "
            f"which have {questions} ({len(held_out)} are held out): add rows that ask, or set enable_rlaif "
            "to false"
        )
        yield Fault("NOT_ENOUGH_FEEDBACK", "enable_rlaif", reason)


def _of_rows(counts: Sequence[TokenCount], plan: Plan) -> Iterator[Fault]:
    refusals = sorted(refusal for count in counts for refusal in count.refusals)
    refused = sum(count.refused for count in counts)
    if refusals:
        line, reason = refusals[0]
        more = f" (and {refused - 1} more; `train validate --base-model` lists them)" if refused > 1 else ""
        where = f"line {line} of {plan.dataset_path}{more}"
        message = f"{plan.base_model} cannot be trained on {where}: {reason}"
        yield Fault("CHAT_TEMPLATE_REFUSED", "base_model", message)


def _of_answers(counts: Sequence[TokenCount], plan: Plan) -> Iterator[Fault]:
    unknown = [*unknown_words(counts, plan.base_model)]
    yield from unknown
    for name, count in zip(("to learn from", "held out for validation"), counts, strict=True):
        if not count.trained and not unknown:
            reason = (
                f"none of the {count.rows} rows {name} has an answer within {plan.max_seq_length} tokens: "
                "raise it, or shorten the rows"
            )
            yield Fault("NO_USABLE_ROWS", "max_seq_length", reason)


def _of_evaluation(tokenizer: Any, plan: Plan) -> Iterator[Fault]:
    specialization = load_specializations()[plan.specialization]
    cases = specialization.evaluation_prompts
    try:
        lengths = [
            len(_prompt(tokenizer, ask(specialization.system_prompt, case.prompt), plan)) for case in cases
        ]
    except TemplateRefuses as refusal:
        reason = f"{plan.base_model} cannot be given an evaluation prompt: {refusal}"
        yield Fault("CHAT_TEMPLATE_REFUSED", "base_model", reason)
        return
    too_long = [case.id for case, length in zip(cases, lengths, strict=True) if length >= plan.room]
    if too_long:
        yield Fault(
            "CONTEXT_TOO_SHORT",
            "max_new_tokens",
            f"{len(too_long)} of the {len(cases)} evaluation prompts ({too_long[0]} first) leave no room for "
            f"max_new_tokens, {plan.max_new_tokens}, in the base model's context of {plan.context_length}: "
            "lower it",
        )


def _prompt(tokenizer: Any, messages: Messages, plan: Plan) -> list[int]:
    """Raises TemplateRefuses, also for a token that the base model does not have."""
    ids = chat_template(tokenizer).prompt_ids(messages)
    if foreign := foreign_tokens(tokenizer, ids, plan.vocab_size):
        raise TemplateRefuses(f"its embedding has {plan.vocab_size} rows, and none for {foreign}")
    return ids


def _of_questions(tokenizer: Any, train: Sequence[Example], plan: Plan, goes_on: GoesOn) -> Iterator[Fault]:
    """Whether RLAIF can ask, and its reward model read."""
    questions = choose_questions(tokenizer, train, plan, goes_on)
    if not goes_on():
        return
    if len(questions.chosen) < MIN_QUESTIONS:
        yield Fault("NOT_ENOUGH_FEEDBACK", *_why_so_few(questions, plan))
        return
    template = chat_template(tokenizer)
    shortest = min(
        len(template.prompt_ids(without_system(question.messages))) for question in questions.chosen
    )
    if shortest >= plan.max_seq_length:
        reason = (
            f"the reward model of RLAIF reads no more than {plan.max_seq_length} tokens, and the shortest "
            f"question has {shortest}, without its answer: raise it"
        )
        yield Fault("NOT_ENOUGH_FEEDBACK", "max_seq_length", reason)


def _why_so_few(questions: Questions, plan: Plan) -> tuple[str, str]:
    """The field at fault, and how."""
    if not questions.too_long:
        refused = _lines(questions.refused)
        reason = f"the chat template refuses the questions of {refused}, and RLAIF needs {MIN_QUESTIONS}"
        return "base_model", reason
    reason = (
        f"{plan.max_new_tokens} leaves no room in the base model's context of {plan.context_length} behind "
        f"the questions of {_lines(questions.too_long)}, and RLAIF needs {MIN_QUESTIONS}: lower it, or add "
        "shorter questions"
    )
    return "max_new_tokens", reason


def _lines(questions: Sequence[Question]) -> str:
    shown = ", ".join(str(question.line) for question in questions[:SHOWN])
    more = f" and {len(questions) - SHOWN} more" if len(questions) > SHOWN else ""
    return f"line{'s' if len(questions) > 1 else ''} {shown}{more}"


def _answers(rows: Sequence[Example]) -> int:
    """Of any row, no more sequences are made than it has answers to be learnt."""
    return sum(
        max(1, sum(turn.role == "assistant" and turn.is_trained for turn in row.messages)) for row in rows
    )
