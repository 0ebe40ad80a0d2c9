"""Chat templates of known families, written after what those publish, each with a tokenizer made on the spot.

`chats` holds what the loss sees of CHAT: the sequences that the template gives, with ⟦what is trained⟧ marked.
"""

# ruff: noqa: RUF001 (the marks of DeepSeek have wide bars)

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "check the oil"},
    {"role": "assistant", "content": "Replace it"},
    {"role": "user", "content": "and the pads"},
    {"role": "assistant", "content": "Yes"},
)
WORDS = ["Replace the pads, and check the oil of the engine.", "user assistant system <|im_end|> <U> </s>"]
CHATML_ROWS = (
    (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ncheck the oil<|im_end|>\n"
        "<|im_start|>assistant\n⟦Replace it<|im_end|>⟧\n<|im_start|>user\nand the pads<|im_end|>\n"
        "<|im_start|>assistant\n⟦Yes<|im_end|>⟧"
    ),
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# SmolLM2 and Qwen 2.5 open a chat that has none with a system turn of their own.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Thoughts, empty ones too, are written behind the last question alone.
QWEN_3 = (
    "{%- set ns = namespace(last=0) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- set content = message.content %}{%- set thought = '' %}{%- if message.role == 'assistant' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last %}"
    "{%- set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}{%- endif %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# The variant for training of TRL, which keeps thoughts and marks what an assistant says.
GENERATION = CHATML.replace(
    "{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}"
)
ALTERNATION = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}" + ALTERNATION +
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)  # fmt: skip
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATION +
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)  # fmt: skip
# The instruction stands before the last question, wherever that is.
MISTRAL_NEMO = (
    "{{ bos_token }}{% set turns = messages %}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}{% endif %}"
    "{% set last = (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}{% for message in turns %}"
    "{% if message['role'] == 'user' %}"
    "{{ '[INST]' + (first if message is sameas last else '') + message['content'] + '[/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# The tokens that part turns swallow the space behind them; a chat has an end of its own.
PHI_3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Leaves a system turn out without a word.
PHI_3_FIRST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '<|end|>\\n<|assistant|>\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
)
# An answer's prompt opens a thought, and the template leaves out the thoughts of all answers.
R1_DISTILL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """added: tokens that the tokenizer does not call special. is_sentence_piece: it puts a space first."""

    name: str
    template: str
    chats: tuple[str, ...]
    eos: str = "<|im_end|>"
    bos: str | None = None
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    added: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    is_sentence_piece: bool = False

    def tokenizer(self) -> Any:
        if self.is_sentence_piece:
            return sentence_piece(self.template)
        return byte_level(
            self.template, eos=self.eos, bos=self.bos, special=self.special, added=self.added, **self.options
        )


FAMILIES = (
    Family("ChatML", CHATML, CHATML_ROWS),
    Family("SmolLM2", DEFAULT_SYSTEM, CHATML_ROWS),
    Family("Qwen 2.5 base", DEFAULT_SYSTEM, CHATML_ROWS, eos="<|endoftext|>"),
    Family("generation tags", GENERATION, CHATML_ROWS),
    Family(
        "Llama 3",
        LLAMA_3,
        (
            ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\ncheck the oil<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Replace it<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nand the pads<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Yes<|eot_id|>⟧"),
        ),
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Family(
        "Qwen 3",
        QWEN_3,
        (
            ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ncheck the oil<|im_end|>\n"
            "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nReplace it<|im_end|>⟧"),
            ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ncheck the oil<|im_end|>\n"
            "<|im_start|>assistant\nReplace it<|im_end|>\n<|im_start|>user\nand the pads<|im_end|>\n"
            "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYes<|im_end|>⟧"),
        ),
        added=("<think>", "</think>"),
    ),
    Family(
        "Gemma",
        GEMMA,
        (
            ("<bos><start_of_turn>user\nBe brief.\n\ncheck the oil<end_of_turn>\n<start_of_turn>model\n"
            "⟦Replace it<end_of_turn>⟧\n<start_of_turn>user\nand the pads<end_of_turn>\n<start_of_turn>model\n"
            "⟦Yes<end_of_turn>⟧"),
        ),
        eos="<eos>",
        bos="<bos>",
        special=("<start_of_turn>", "<end_of_turn>"),
    ),
    Family(
        "Mistral",
        MISTRAL,
        (
            "<s>[INST] Be brief.\n\ncheck the oil [/INST]⟦ Replace it</s>⟧[INST] and the pads [/INST]⟦ Yes</s>⟧",
        ),
        is_sentence_piece=True,
    ),
    Family(
        "Mistral Nemo",
        MISTRAL_NEMO,
        (
            "<s>[INST]Be brief.\n\ncheck the oil[/INST]⟦Replace it</s>⟧",
            "<s>[INST]check the oil[/INST]Replace it</s>[INST]Be brief.\n\nand the pads[/INST]⟦Yes</s>⟧",
        ),
        eos="</s>",
        bos="<s>",
        special=("[INST]", "[/INST]"),
    ),
    Family(
        "Zephyr",
        ZEPHYR,
        (
            ("<|system|>\nBe brief.</s>\n<|user|>\ncheck the oil</s>\n<|assistant|>\n⟦Replace it</s>⟧\n"
            "<|user|>\nand the pads</s>\n<|assistant|>\n⟦Yes</s>⟧"),
        ),
        is_sentence_piece=True,
    ),
    Family(
        "Phi-3",
        PHI_3,
        (
            ("<|system|>\nBe brief.<|end|>\n<|user|>\ncheck the oil<|end|>\n<|assistant|>\n⟦Replace it<|end|>⟧\n"
            "<|user|>\nand the pads<|end|>\n<|assistant|>\n⟦Yes<|end|>⟧"),
        ),
        eos="<|endoftext|>",
        special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        options={"swallows_space": True},
    ),
    Family(
        "Phi-3 as first published",
        PHI_3_FIRST,
        (
            ("<|user|>\nBe brief.\n\ncheck the oil<|end|>\n<|assistant|>\n⟦Replace it<|end|>⟧\n"
            "<|user|>\nand the pads<|end|>\n<|assistant|>\n⟦Yes<|end|>⟧"),
        ),
        eos="<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Family(
        "DeepSeek-R1 distilled",
        R1_DISTILL,
        (
            ("<｜begin▁of▁sentence｜>Be brief.<｜User｜>check the oil<｜Assistant｜><think>\n"
            "⟦\n</think>\n\nReplace it<｜end▁of▁sentence｜>⟧"),
            ("<｜begin▁of▁sentence｜>Be brief.<｜User｜>check the oil<｜Assistant｜>Replace it<｜end▁of▁sentence｜>"
            "<｜User｜>and the pads<｜Assistant｜><think>\n⟦\n</think>\n\nYes<｜end▁of▁sentence｜>⟧"),
        ),
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        special=(),
        added=("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    ),
)  # fmt: skip
NAMED = {family.name: family for family in FAMILIES}


def segments(chat: str) -> list[tuple[str, bool]]:
    """A string of `Family.chats` as stretches of text and whether they are trained."""
    parts = re.split("[⟦⟧]", chat)
    return [(text, bool(place % 2)) for place, text in enumerate(parts) if text]


def byte_level(
    template: str | None,
    *,
    eos: str = "<|im_end|>",
    bos: str | None = None,
    special: Any = ("<|im_start|>", "<|im_end|>"),
    added: Any = (),
    swallows_space: bool = False,
) -> Any:
    """A tokenizer of bytes and some merges. added: tokens that it does not call special.

    swallows_space: the special tokens take the space behind them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    known = list(dict.fromkeys([eos, *special, *([bos] if bos else [])]))
    tokenizer.train_from_iterator(
        WORDS * 20,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=[AddedToken(token, rstrip=swallows_space, special=True) for token in known],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=eos, **({"bos_token": bos} if bos else {})
    )
    fast.chat_template = template
    return fast


def sentence_piece(template: str) -> Any:
    """As Llama 2's: a space before every text, and letters that are no tokens of their own."""
    letters = sorted(set("".join(WORDS) + "[INST]/\n|BY") - {" "})
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", *letters])}
    for merged in ("▁R", "▁Y"):
        vocab[merged] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "R"), ("▁", "Y")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast
