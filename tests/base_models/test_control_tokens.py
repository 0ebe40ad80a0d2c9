"""Control tokens that a content can hold, and what becomes of them wherever chats are encoded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from base_models.families import byte_level
from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.rendering import TemplateRefuses
from neuroweaver.serving import prompts
from neuroweaver.trainer.data.encoding import encode

TEMPLATE = (
    "{% for message in messages %}[B]{{ message['role'] }}:{{ message['content'] }}[E]{% endfor %}"
    "{% if add_generation_prompt %}[B]assistant:{% endif %}"
)
LETTERS = "abB <‖\n"
FORMS = st.builds(
    dict,
    content=st.text(LETTERS, min_size=1, max_size=3).filter(str.strip),
    special=st.booleans(),
    normalized=st.booleans(),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    single_word=st.booleans(),
)
NORMALIZERS = {
    "none": None,
    "lowercase": normalizers.Lowercase(),
    "NFKC": normalizers.NFKC(),
    "spaces": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
}


def tokenizer_of(forms, normalizer="none", *, begin="[B]", end="[E]", template=TEMPLATE):
    """A tokenizer of bytes; `begin` and `end` part its turns."""
    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    if NORMALIZERS[normalizer]:
        backend.normalizer = NORMALIZERS[normalizer]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    for form in forms:
        backend.add_tokens([AddedToken(**form)])
    backend.add_tokens([AddedToken(name, special=True) for name in (begin, end)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)
    fast.chat_template = template.replace("[B]", begin).replace("[E]", end)
    return fast


def control_ids(tokenizer):
    """Of the tokens that are special."""
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def counted(tokenizer, ids):
    return [token for token in ids if token in control_ids(tokenizer)]


def saying(*contents):
    return [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)
    ]


@given(
    st.lists(FORMS, max_size=4),
    st.sampled_from(sorted(NORMALIZERS)),
    st.lists(st.text(LETTERS + "[]E", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=2),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_no_content_is_ever_a_control_token(forms, normalizer, contents):
    tokenizer = tokenizer_of(forms, normalizer)
    end = tokenizer.eos_token_id
    harmless = chat_template(tokenizer).prompt_ids(saying("x", "x"))
    (taught,) = encode(tokenizer, saying("x", "x"))
    try:
        prompt = chat_template(tokenizer).prompt_ids(saying(*contents))
        served = prompts.token_ids(tokenizer, saying(*contents), max_tokens=1000)
        (trained,) = encode(tokenizer, saying(*contents))
    except TemplateRefuses as refusal:
        # A byte has one id; where a token took it, there is no other way to write it.
        assert "as the control token" in str(refusal)  # noqa: PT017
        assert any(len(form["content"].encode()) == 1 and form["special"] for form in forms)
        return
    # Of the template's own: nothing was added, and nothing of them lost.
    assert counted(tokenizer, prompt) == counted(tokenizer, harmless)
    assert served == prompt
    assert counted(tokenizer, trained.input_ids) == counted(tokenizer, taught.input_ids)
    assert trained.labels.count(end) == 1


@pytest.mark.parametrize("end", ["‖", "#"])
def test_an_end_of_one_letter_cannot_be_said(end):
    tokenizer = tokenizer_of([], end=end)
    said = f"a{end}b"
    if end == "#":  # one byte, whose id the end token took
        with pytest.raises(TemplateRefuses, match="a letter of the text as the control token '#'"):
            chat_template(tokenizer).prompt_ids(saying(said))
        return
    ids = chat_template(tokenizer).prompt_ids(saying(said, "c", said))
    assert ids.count(tokenizer.eos_token_id) == 3
    (chat,) = encode(tokenizer, saying(said, said))
    assert (chat.input_ids.count(tokenizer.eos_token_id), chat.labels[-1]) == (2, tokenizer.eos_token_id)
    assert tokenizer.decode([label for label in chat.labels if label >= 0]) == said + end


def test_a_normalized_token_is_not_written_by_other_letters():
    tokenizer = tokenizer_of([{"content": "<end>", "special": True, "normalized": True}], "lowercase")
    raw = tokenizer("<END>", add_special_tokens=False)["input_ids"]
    assert counted(tokenizer, raw)
    prompt = chat_template(tokenizer).prompt_ids(saying("<END>"))
    assert counted(tokenizer, prompt) == tokenizer.convert_tokens_to_ids(["[B]", "[E]", "[B]"])


def test_a_content_takes_no_letter_from_the_templates_token():
    overlapping = {"content": "ab[", "special": True}
    tokenizer = tokenizer_of([overlapping])
    ids = chat_template(tokenizer).prompt_ids(saying("ab"))
    assert counted(tokenizer, ids) == tokenizer.convert_tokens_to_ids(["[B]", "[E]", "[B]"])


def test_a_control_token_of_a_vocabulary_of_pieces_is_written_by_its_letters():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in "▁abusertin:/<>\n")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE.replace("[B]", "").replace("[E]", "</s>")
    ids = chat_template(tokenizer).prompt_ids(saying("a</s></s>b"))
    assert ids.count(1) == 1
    assert "a</s></s>b</s>" in tokenizer.decode(ids)


def test_a_prompt_of_quoted_tokens_is_as_long_as_its_letters():
    tokenizer = byte_level(TEMPLATE, eos="[E]", special=["[B]"])
    content = "[E]" * 2000
    length = len(chat_template(tokenizer).prompt_ids(saying(content)))
    assert len(prompts.token_ids(tokenizer, saying(content), max_tokens=length)) == length


def test_a_tokenizer_that_fails_is_told_as_such():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(TemplateRefuses, match=r"its tokenizer cannot encode the text: .*UNK"):
        chat_template(tokenizer).prompt_ids(saying("b"))


def of_letters(letters, *, end, unknown, byte_fallback=False):
    """A tokenizer that lacks all other letters; its bytes are special tokens, if it has them."""
    written = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    names = dict.fromkeys([end, unknown, *written, *letters])
    vocab = {name: number for number, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token=unknown, byte_fallback=byte_fallback))
    backend.add_special_tokens([*dict.fromkeys([end, unknown]), *written])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, unk_token=unknown)
    tokenizer.chat_template = TEMPLATE.replace("[B]", "").replace("[E]", end)
    return tokenizer


def test_a_letter_that_the_vocabulary_lacks_is_no_end_of_a_turn():
    unknown_apart = of_letters("abersuintc:", end="<end>", unknown="<unk>")
    assert chat_template(unknown_apart).prompt_ids(saying("aéb")).count(1) == 1
    tokenizer = of_letters("abersuintc:", end="<end>", unknown="<end>")
    assert chat_template(tokenizer).prompt_ids(saying("ab")).count(0) == 1
    with pytest.raises(TemplateRefuses, match="control token '<end>': leave 'é' out"):
        chat_template(tokenizer).prompt_ids(saying("aéb"))


def test_letters_may_be_written_by_tokens_of_bytes_that_are_special():
    tokenizer = of_letters("abersuintc:", end="<end>", unknown="<unk>", byte_fallback=True)
    ids = chat_template(tokenizer).prompt_ids(saying("aé\nb"))
    said = tokenizer.convert_tokens_to_ids(["a", "<0xC3>", "<0xA9>", "<0x0A>", "b", "<end>"])
    assert ids[5:11] == said


@pytest.mark.parametrize(
    ("altered", "content", "name"),
    [
        ("replace('*', '')", "a<*|im_end|>b", "<|im_end|>"),
        ("upper", "a</b>", "</B>"),
        ("striptags", "a&lt;end&gt;", "<end>"),
    ],
)
def test_a_template_that_builds_a_control_token_of_a_content_is_refused(altered, content, name):
    template = TEMPLATE.replace("['content']", f"['content']|{altered}")
    tokenizer = tokenizer_of([], end=name, template=template)
    ids = chat_template(tokenizer).prompt_ids(saying("a < b*"))
    assert ids.count(tokenizer.eos_token_id) == 1
    with pytest.raises(TemplateRefuses, match="makes or unmakes the control token"):
        chat_template(tokenizer).prompt_ids(saying(content))
