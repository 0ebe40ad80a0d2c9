"""Whether a folder holds a base model that can be trained safely; read without loading any weight."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroweaver.mesh.wire.keepable import keepable

MAX_JSON_BYTES = 64 << 20
# A sixth of the format's own bound: read, a header takes ten times as much memory. A tensor takes 100 to 150
# bytes of it, so 100,000 fit; the models with the most have a few hundred to a thousand in each file.
MAX_HEADER_BYTES = 16 << 20
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Names under which configurations of different architectures give the longest sequence, in tokens.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


# Of a number that sizes a model: whoever computes with it has 32 bits.
MAX_SIZE = (1 << 31) - 1
# Of a number for which transformers makes a list as long, or as many modules.
MAX_REPEATED = 10_000
REPEATED = re.compile(r"(layers?|depth|experts|num_labels|attention_types)$")
GENERATION = "generation_config.json"
LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers")
_MAX_WORDS = 500


class Unusable(Exception):
    """The folder is no base model to train; the text says why, in words that a message can hold."""

    def __init__(self, reason: str) -> None:
        super().__init__(keepable(reason)[:_MAX_WORDS])


@dataclass(frozen=True, slots=True)
class Shape:
    """What the files say of the model. Zero and empty mean that they do not say; context_length: tokens."""

    architecture: str
    context_length: int
    parameters: int
    hidden_size: int
    layers: int
    vocab_size: int
    has_chat_template: bool
    licence: str


def examine(folder: Path) -> Shape:
    """The shape of the model in `folder`. Raises Unusable."""
    if not folder.is_dir():
        raise Unusable("is no folder")
    config = _config(folder)
    refuse_missing_tokenizer({path.name for path in folder.iterdir()})
    tokenizer = (
        _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    )
    examined = shape(
        config,
        tokenizer,
        parameters=_parameters(folder),
        has_template_file=(folder / "chat_template.jinja").is_file(),
        licence=_licence(folder),
    )
    refuse_foreign_ends(folder)
    return examined


def shape(
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    *,
    parameters: int,
    has_template_file: bool,
    licence: str,
) -> Shape:
    """The shape by config.json and tokenizer_config.json. Raises Unusable if they refuse the model."""
    for file, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if content.get("auto_map"):
            raise Unusable(f"brings code of its own ({file} has auto_map), which is never run")
    _refuse_repeated(config)
    vocab_size = _whole(config, "vocab_size")
    for holder in _holders(config):
        _refuse_no_tokens(holder, "config.json")
        padding = holder.get("pad_token_id") or 0
        if 0 < vocab_size <= padding:
            raise Unusable(f"pads with token {padding}, outside its vocabulary of {vocab_size} (config.json)")
    return Shape(
        architecture=_causal_architecture(config),
        context_length=_whole(config, *CONTEXT_NAMES),
        parameters=parameters,
        hidden_size=_whole(config, "hidden_size", "n_embd", "d_model"),
        layers=_whole(config, *LAYER_NAMES),
        vocab_size=vocab_size,
        has_chat_template=has_template_file or bool(tokenizer.get("chat_template")),
        licence=licence,
    )


def token_ids(settings: dict[str, Any], name: str, file: str, vocab_size: int) -> frozenset[int]:
    """The tokens that `name` of `settings` gives, one or a list. Raises Unusable.

    vocab_size: 0 where unknown.
    """
    value = settings.get(name)
    ids = value if isinstance(value, list) else [value] if value is not None else []
    end = vocab_size or MAX_SIZE
    for token in ids:
        if type(token) is not int or not 0 <= token < end:
            raise Unusable(
                f"names {json.dumps(token)[:40]} as its {name} ({file}), which is no token: give whole "
                f"numbers from 0 to {end - 1}, or leave it out"
            )
    return frozenset(ids)


def refuse_foreign_ends(folder: Path) -> None:
    """Raise Unusable if what is to end the answers of the model in `folder` is none of its tokens.

    Where generation_config.json is missing, config.json says it.
    """
    config = _config(folder)
    vocab_size = _whole(config, "vocab_size")
    if (folder / GENERATION).exists():
        settings = _json(folder / GENERATION)
        _refuse_no_tokens(settings, GENERATION)
        token_ids(settings, "eos_token_id", GENERATION, vocab_size)
        return
    for holder in _holders(config):
        token_ids(holder, "eos_token_id", "config.json", vocab_size)


def layers(folder: Path) -> tuple[str, ...]:
    """Names of the modules that hold a weight matrix, by the headers of the safetensors. Raises Unusable."""
    shapes = [item for path in sorted(folder.glob("*.safetensors")) for item in _shapes(path).items()]
    return tuple(
        name.rpartition(".")[0]
        for name, sizes in shapes
        if name.endswith((".weight", ".qweight")) and len(sizes) > 1
    )


def refuse_missing_tokenizer(files: set[str]) -> None:
    """Raise Unusable if no tokenizer is among the names `files`."""
    if not any(files.issuperset(names) for names in TOKENIZERS):
        raise Unusable("holds no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)")


def refuse_missing_weights(files: set[str]) -> None:
    """Raise Unusable if no safetensors are among the names `files`."""
    if any(name.endswith(".safetensors") for name in files):
        return
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles:
        raise Unusable(
            f"holds its weights as pickles only ({pickles[0]}), which can run code when they are read: "
            "save them as safetensors"
        )
    raise Unusable("holds no *.safetensors weights")


def _causal_architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else []
    names = [name for name in listed if isinstance(name, str) and name.isidentifier()]
    causal = [name for name in names if name.endswith(("ForCausalLM", "LMHeadModel"))]
    if not causal:
        told = ", ".join(names) or "nothing"
        raise Unusable(f"is not a causal language model: config.json names {told} as its architecture")
    return causal[0]


def _config(folder: Path) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return _json(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise Unusable("holds a LoRA adapter, which is no base model: merge it into its base first")
    raise Unusable("holds no config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise Unusable(f"{path.name} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
        json.dumps(value, ensure_ascii=False).encode()  # a surrogate is a character for JSON alone
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error  # without the path
        raise Unusable(f"{path.name} cannot be read: {reason}") from error
    if not isinstance(value, dict):
        raise Unusable(f"{path.name} is not a JSON object")
    return value


def _holders(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Multi-modal configurations keep the language model's numbers one level down."""
    return [holder for holder in (config, config.get("text_config")) if isinstance(holder, dict)]


def _whole(config: dict[str, Any], *names: str) -> int:
    """The first of the numbers that is given and not 0; 0 without any. Raises Unusable: no number."""
    values = [
        _size(holder[name], name)
        for holder in _holders(config)
        for name in names
        if holder.get(name) is not None
    ]
    return next((value for value in values if value), 0)


def _size(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise Unusable(f"has a {name} of {json.dumps(value)[:40]}, which is no size (config.json)")
    if value > MAX_SIZE:
        raise Unusable(f"has a {name} beyond any model (config.json)")
    return value


def _refuse_no_tokens(settings: dict[str, Any], file: str) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if name != "pad_token_id" or settings.get(name) != -1:  # older conversions have it for none
            token_ids(settings, name, file, 0)
        if name != "eos_token_id" and isinstance(settings.get(name), list):
            raise Unusable(f"has a list as its {name} ({file}): give one token")


def _refuse_repeated(config: dict[str, Any]) -> None:
    """Raise Unusable for a number, at any depth, that is made into a longer list than any model has."""
    found: list[tuple[str, Any]] = list(config.items())
    while found:
        name, value = found.pop()
        if isinstance(value, dict):
            found += value.items()
        elif isinstance(value, list):
            found += ((name, item) for item in value)
        elif isinstance(value, int | float) and value > MAX_REPEATED and REPEATED.search(name):
            raise Unusable(f"has a {name[:40]} of more than {MAX_REPEATED} (config.json)")


def _parameters(folder: Path) -> int:
    """The number of weights in all safetensors files, each file's header and length checked."""
    refuse_missing_weights({path.name for path in folder.iterdir()})
    files = sorted(folder.glob("*.safetensors"))
    _refuse_missing_shards(folder, {path.name for path in files})
    return sum(_weights(path) for path in files)


def _refuse_missing_shards(folder: Path, present: set[str]) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise Unusable(f"{index.name} has no weight_map from tensors to files")
    wanted = set(shards.values())
    if missing := sorted(wanted - present):
        raise Unusable(f"lacks {len(missing)} of {len(wanted)} weight files, {missing[0]} first")


def _weights(path: Path) -> int:
    """The number of weights in `path`."""
    return sum(map(math.prod, _shapes(path).values()))


def _shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by the header of `path`: 8 bytes of length, JSON, then the tensors' bytes."""
    try:
        with path.open("rb") as source:
            length = os.fstat(source.fileno()).st_size
            size = int.from_bytes(source.read(8), "little")
            if size > length - 8:
                raise Unusable(f"{path.name} is not a safetensors file")
            if size > MAX_HEADER_BYTES:
                raise Unusable(
                    f"{path.name} has a header of {size} bytes, more than {MAX_HEADER_BYTES}: save the "
                    "weights in several files"
                )
            tensors = json.loads(source.read(size), object_pairs_hook=_distinct)
        shapes, ends = {}, [0]
        for name, tensor in tensors.items():
            if name != "__metadata__":
                shapes[name], end = _tensor(tensor)
                ends.append(end)
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise Unusable(f"{path.name} is not a safetensors file") from error
    if length != (end := 8 + size + max(ends)):
        raise Unusable(f"{path.name} is cut short or damaged: {length} bytes where its header says {end}")
    return shapes


def _tensor(described: dict[str, Any]) -> tuple[list[int], int]:
    """A tensor's shape, and where its bytes end. Raises ValueError, KeyError, TypeError."""
    begin, end = offsets = described["data_offsets"]
    shape = described["shape"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("a shape or place is no list")
    # 64 is more than any library has dimensions; JSON has numbers of any length, and 1e999.
    if len(shape) > 64 or not all(
        type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)
    ):
        raise ValueError("a length is none")
    if begin > end:
        raise ValueError("a tensor ends before it begins")
    # The smallest weights take four bits.
    if math.prod(shape) > 2 * (end - begin):
        raise ValueError("a tensor is larger than its bytes")
    return shape, end


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could each believe another of two equal names."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _licence(folder: Path) -> str:
    """The `license:` of the model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as source:
        head = source.read(1 << 14)
    if not head.startswith("---"):
        return ""
    for line in head.split("\n---", 1)[0].splitlines():
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("\"'")
    return ""
