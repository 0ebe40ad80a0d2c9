"""Whether a folder holds a base model that can be trained safely; read without loading any weight."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 << 20
# The format's own bound on a header (safetensors 0.8, `MAX_HEADER_SIZE`).
MAX_HEADER_BYTES = 100_000_000
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Names under which configurations of different architectures give the longest sequence, in tokens.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


class Unusable(Exception):
    """The folder is no base model to train; the text says why."""


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
    names = (
        [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    )
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
                if isinstance(holder.get(name), int) and holder[name] > 0:
                    return int(holder[name])
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
    wanted = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    if missing := sorted(wanted - present):
        raise Unusable(f"lacks {len(missing)} of {len(wanted)} weight files, {missing[0]} first")


def _weights(path: Path) -> int:
    """The number of weights in `path`."""
    return sum(map(math.prod, _shapes(path).values()))


def _shapes(path: Path) -> dict[str, list[int]]:
    """The tensors' shapes by the header of `path`: 8 bytes of length, JSON, then the tensors' bytes."""
    try:
        with path.open("rb") as source:
            size = int.from_bytes(source.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise Unusable(f"{path.name} is not a safetensors file")
            tensors = {
                name: at for name, at in json.loads(source.read(size)).items() if name != "__metadata__"
            }
        end = 8 + size + max((at["data_offsets"][1] for at in tensors.values()), default=0)
        shapes = {name: [int(length) for length in at["shape"]] for name, at in tensors.items()}
        length = path.stat().st_size
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise Unusable(f"{path.name} is not a safetensors file") from error
    if length != end:
        raise Unusable(f"{path.name} is cut short or damaged: {length} bytes where its header says {end}")
    return shapes


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
