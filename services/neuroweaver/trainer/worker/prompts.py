"""Whether the base model can read the prompts and hold their answers: known before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from neuroweaver.base_models.catalog import BaseModel
from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.folders import BaseModelUnavailable
from neuroweaver.base_models.tokenizer import load_tokenizer
from neuroweaver.trainer.data.turns import Messages
from neuroweaver.trainer.worker.context import JobContext
from neuroweaver.trainer.worker.data.questions import Question, ask, choose
from neuroweaver.trainer.worker.failures import ContextTooShort


def require_vocabulary(folder: Path, base: BaseModel) -> None:
    """Raise BaseModelUnavailable if the template writes a token for which the embedding has no row."""
    tokenizer = load_tokenizer(folder)
    turns = [{"role": role, "content": "a word"} for role in ("user", "assistant", "user")]
    template = chat_template(tokenizer)
    written = {*template.prompt_ids(turns), *template.ends(None)}
    if base.vocab_size and (foreign := [token for token in written if token >= base.vocab_size]):
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} ({token})" for token in sorted(foreign))
        raise BaseModelUnavailable(
            f"chats of base model {base.name} are written with {names}, and its embedding has "
            f"{base.vocab_size} rows: save it with an embedding of its tokenizer's size"
        )


def room_for_answers(folder: Path, base: BaseModel, max_new_tokens: int) -> Callable[[Messages], bool]:
    """Whether a prompt leaves room for an answer, and for the end that a reward model reads behind it."""
    template = chat_template(load_tokenizer(folder))
    room = (base.context_length or math.inf) - max_new_tokens
    return lambda messages: len(template.prompt_ids(messages)) < room


def require_room(context: JobContext, has_room: Callable[[Messages], bool]) -> None:
    """Raise ContextTooShort if the context holds an evaluation prompt with its answer only in part."""
    system_prompt, cases = context.specialization.system_prompt, context.specialization.evaluation_prompts
    too_long = [case.id for case in cases if not has_room(ask(system_prompt, case.prompt))]
    if too_long:
        raise ContextTooShort(
            f"{len(too_long)} of the {len(cases)} evaluation prompts ({too_long[0]} first) leave no room for "
            f"max_new_tokens, {context.config.max_new_tokens}, in the base model's context: lower it"
        )


def choose_questions(context: JobContext, has_room: Callable[[Messages], bool]) -> tuple[Question, ...]:
    """The prompts of RLAIF: questions of the training split that leave room for an answer."""
    config, too_long = context.config, 0

    def is_wanted(question: Question) -> bool:
        nonlocal too_long
        fits = has_room(question.messages)
        too_long += not fits
        return fits

    chosen = choose(
        context.prepared.train, config.specialization, config.rlaif_samples, config.seed, is_wanted
    )
    if too_long:
        context.stages.notice(
            "PROMPTS_TOO_LONG",
            f"{too_long} questions are not asked in RLAIF: they leave no room for max_new_tokens, "
            f"{config.max_new_tokens}, in the base model's context",
        )
    return tuple(chosen)
