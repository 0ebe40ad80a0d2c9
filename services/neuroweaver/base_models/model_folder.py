"""Whether a folder holds a base model that can be trained safely; read without loading any weight."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuroweaver.mesh.wire.keepable import keepable

MAX_JSON_BYTES = 64 << 20
# The format's own bound on a header (safetensors 0.8, `MAX_HEADER_SIZE`).
MAX_HEADER_BYTES = 100_000_000
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Names under which configurations of different architectures give the longest sequence, in tokens.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


# Of a number that sizes a model: whoever computes with it has 32 bits.
MAX_SIZE = (1 << 31) - 1
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
    return shape(
        config,
        tokenizer,
        parameters=_parameters(folder),
        has_template_file=(folder / "chat_template.jinja").is_file(),
        licence=_licence(folder),
    )


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
    vocab_size, padding = _whole(config, "vocab_size"), _whole(config, "pad_token_id")
    if 0 < vocab_size <= padding:
        raise Unusable(f"pads with token {padding}, outside its vocabulary of {vocab_size} (config.json)")
    return Shape(
        architecture=_causal_architecture(config),
        context_length=_whole(config, *CONTEXT_NAMES),
        parameters=parameters,
        hidden_size=_whole(config, "hidden_size", "n_embd", "d_model"),
        layers=_whole(config, "num_hidden_layers", "n_layer", "num_layers"),
        vocab_size=vocab_size,
        has_chat_template=has_template_file or bool(tokenizer.get("chat_template")),
        licence=licence,
    )


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


def _whole(config: dict[str, Any], *names: str) -> int:
    # Multi-modal configurations keep the language model's numbers one level down.
    for holder in (config, config.get("text_config")):
        if isinstance(holder, dict):
            for name in names:
                value = holder.get(name)
                if type(value) is int and value > MAX_SIZE:
                    raise Unusable(f"has a {name} beyond any model (config.json)")
                if type(value) is int and value > 0:
                    return value
    return 0


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
            if size > min(MAX_HEADER_BYTES, length - 8):
                raise Unusable(f"{path.name} is not a safetensors file")
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
