from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from base_models.families import CHATML, byte_level
from neuroweaver.trainer.data.rows import Example, Message
from neuroweaver.trainer.data.trial import Plan, Trial, try_rows, try_split
from neuroweaver.trainer.domain.config import with_defaults
from neuroweaver.v1 import trainer_pb2 as pb

# Refuses by what is said, not by who speaks.
CHOOSY = "{% if 'forbidden' in messages[0]['content'] %}{{ raise_exception('not that') }}{% endif %}" + CHATML


def plan(*, context_length: int = 0, vocab_size: int = 0, **fields: Any) -> Plan:
    names = {"base_model": "tiny", "dataset_path": "rows.jsonl", "specialization": "service_advisor"}
    config = with_defaults(pb.TrainingConfig(**names, **fields))
    return Plan.of(config, context_length=context_length, vocab_size=vocab_size)


def asked(line: int, question: str = "oil", answer: str = "replace it") -> Example:
    return Example((Message("user", question), Message("assistant", answer)), line)


def whenever() -> bool:
    return True


def times(count: int) -> Callable[[], bool]:
    """There is time for so many rows."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def tried(tokenizer: Any, *train: Example, goes_on: Callable[[], bool] = whenever, **fields: Any) -> Trial:
    return try_split(tokenizer, train, [asked(99)], plan(**fields), goes_on)


def faults(trial: Trial) -> list[tuple[str, str]]:
    return [(fault.reason, fault.field) for fault in trial.faults]


def test_a_row_that_is_refused_by_its_words_is_found_behind_others_of_its_shape():
    rows = [*(asked(line) for line in range(1, 6)), asked(6, "forbidden"), asked(7, "forbidden")]
    (fault,) = tried(byte_level(CHOOSY), *rows).faults
    assert (fault.reason, fault.field) == ("CHAT_TEMPLATE_REFUSED", "base_model")
    assert fault.message == (
        "tiny cannot be trained on line 6 of rows.jsonl (and 1 more; `train validate --base-model` lists them): "
        "the chat template refuses it: not that"
    )


def test_data_that_will_do_has_no_fault():
    trial = tried(byte_level(CHATML), asked(1), asked(2))
    assert trial == Trial(faults=(), is_whole=True, train_rows=2, sequences=2)


def test_what_needs_a_tokenizer_waits_for_it():
    rows = [asked(line, "forbidden") for line in (1, 2)]
    assert tried(None, *rows).faults == ()
    assert faults(tried(None, rows[0])) == [("NOT_ENOUGH_FEEDBACK", "enable_rlaif")]
    assert try_rows(None, rows, plan(), whenever).faults == ()


def test_rows_of_a_large_file_are_rendered_one_by_one():
    rows = (asked(line, "forbidden" if line == 50 else "oil") for line in range(1, 60))
    (fault,) = try_rows(byte_level(CHOOSY), rows, plan(), whenever).faults
    assert "line 50 of" in fault.message
    assert next(rows, None) is None


def test_rows_for_which_there_is_no_time_are_no_fault_and_the_trial_says_so():
    rows = [asked(1), asked(2), asked(3, "forbidden")]
    trial = tried(byte_level(CHOOSY), *rows, goes_on=times(2))
    assert (trial.faults, trial.is_whole) == ((), False)
    # The most there can be: a warm-up beyond these is certainly too long.
    assert (trial.train_rows, trial.sequences) == (3, 3)


def test_a_template_that_refuses_the_evaluation_prompts_is_found():
    refusing = (
        "{% if 'service advisor' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    assert faults(tried(byte_level(refusing), asked(1), asked(2))) == [
        ("CHAT_TEMPLATE_REFUSED", "base_model")
    ]


def test_evaluation_prompts_without_room_are_told_by_the_first():
    (fault,) = tried(byte_level(CHATML), asked(1), asked(2), context_length=512, max_new_tokens=500).faults
    assert (fault.reason, fault.field) == ("CONTEXT_TOO_SHORT", "max_new_tokens")
    assert fault.message.startswith("20 of the 20 evaluation prompts (")
    assert fault.message.endswith(
        "leave no room for max_new_tokens, 500, in the base model's context of 512: lower it"
    )


def test_questions_without_room_are_told_by_their_lines():
    rows = [asked(line, "oil " * 1000 * (line < 6)) for line in range(1, 7)]
    trial = tried(byte_level(CHATML), *rows, context_length=1024, max_new_tokens=100, max_seq_length=1024)
    (fault,) = trial.faults
    assert (fault.reason, fault.field) == ("NOT_ENOUGH_FEEDBACK", "max_new_tokens")
    assert "behind the questions of lines " in fault.message
    assert " and 2 more, and RLAIF needs 2" in fault.message
    assert tried(byte_level(CHATML), *rows, context_length=1024, enable_rlaif=False).faults == ()
    assert tried(byte_level(CHATML), *rows, context_length=1024, fall_back_to_sft=True).faults == ()


def test_questions_that_no_reward_model_could_read_are_found():
    rows = [
        Example((*asked(line).messages, *asked(line, "oil " * 30).messages), line) for line in range(1, 4)
    ]
    assert faults(tried(byte_level(CHATML), *rows, max_seq_length=60)) == [
        ("NOT_ENOUGH_FEEDBACK", "max_seq_length")
    ]
    assert tried(byte_level(CHATML), *rows, max_seq_length=600).faults == ()


def test_a_token_beyond_the_embedding_is_found_where_it_stands():
    tokenizer = byte_level(CHATML, added=("<part>",))
    size = tokenizer.convert_tokens_to_ids("<part>")
    rows = [asked(1), asked(2), asked(3, answer="the <part> is worn")]
    assert tried(tokenizer, *rows[:2], vocab_size=size).faults == ()
    (fault,) = tried(tokenizer, *rows, vocab_size=size).faults
    assert (fault.field, "line 3 of" in fault.message) == ("base_model", True)
    assert fault.message.endswith(f"the base model's embedding has {size} rows, and none for <part> ({size})")


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_an_end_or_a_padding_beyond_the_embedding_is_found(token):
    tokenizer = byte_level(CHATML)
    size = len(tokenizer)
    tokenizer.add_special_tokens({token: "<new>"})
    (fault,) = tried(tokenizer, asked(1), asked(2), vocab_size=size).faults
    assert (fault.reason, fault.field) == ("BASE_MODEL_UNAVAILABLE", "base_model")
    assert f"<new> ({size})" in fault.message


def test_a_tokenizer_that_can_neither_pad_nor_end_is_found():
    tokenizer = byte_level(CHATML)
    tokenizer.pad_token = tokenizer.eos_token = None
    assert faults(tried(tokenizer, asked(1), asked(2))) == [("BASE_MODEL_UNAVAILABLE", "base_model")]


def words(**vocabulary: int) -> Any:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **vocabulary}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def test_a_tokenizer_that_knows_no_word_is_at_fault_and_not_the_length():
    assert faults(tried(words(), asked(1), asked(2))) == [("BASE_MODEL_UNAVAILABLE", "base_model")]
    assert tried(words(replace=1), asked(1), asked(2)).faults == ()


def test_an_empty_vocabulary_is_at_fault():
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    empty.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    empty.chat_template = CHATML
    (fault,) = tried(empty, asked(1), asked(2)).faults
    assert (fault.field, fault.message) == (
        "base_model",
        "the tokenizer of tiny knows no word of the answers: its vocabulary fits other texts",
    )


def test_answers_beyond_the_length_are_told_by_part():
    long = [asked(line, "oil " * 300) for line in (1, 2)]
    trial = try_split(byte_level(CHATML), long, long, plan(max_seq_length=100), whenever)
    assert faults(trial) == [("NO_USABLE_ROWS", "max_seq_length")] * 2
