"""From the files of a version to a network that is ready to generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from neuroweaver.artifacts.serving_config import ServingConfig
from neuroweaver.base_models import rendering
from neuroweaver.base_models.chat_template import chat_template
from neuroweaver.base_models.tokenizer import load_tokenizer
from neuroweaver.mesh.machine.memory import held_bytes
from neuroweaver.serving import artifacts
from neuroweaver.serving.artifacts import DamagedArtifacts
from neuroweaver.serving.engine.network import Adapters, CannotServe, Network

_DTYPES: Final[dict[str, Any]] = {
    "": "auto",
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
# Of the memory that is free once the weights are loaded, for keys and values.
_CACHE_SHARE: Final = 0.6
# Below a limit of its own, which nothing reclaims for it: what a forward pass takes beside them must fit too.
_LIMITED_SHARE: Final = 0.5


@dataclass(frozen=True)
class Loaded:
    """ends: token ids that end an answer of any version. version_ends: those of the configured one beside."""

    network: Network
    tokenizer: Any
    ends: frozenset[int]
    version_ends: frozenset[int]
    vocab_size: int


def load(config: ServingConfig, files: Path) -> Loaded:
    """files: a folder with the version's files and nothing else. Raises DamagedArtifacts, CannotServe."""
    transformers_logging.disable_progress_bar()
    try:
        return _load(config, files)
    except (CannotServe, DamagedArtifacts):
        raise
    except Exception as error:
        # What the libraries raise for a model that they cannot load is of no common kind.
        raise CannotServe(f"the model cannot be loaded: {type(error).__name__}: {error}") from error


def _load(config: ServingConfig, files: Path) -> Loaded:
    folder, adapter = _places(config, files)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.weight_type == "fp16" and device.type == "cpu":
        raise CannotServe("weight_type fp16 needs a GPU, and there is none")
    artifacts.verify_ends(folder)
    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_DTYPES[config.weight_type],
        device_map={"": device},
        attn_implementation="sdpa",
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    ).eval()
    ends = chat_template(tokenizer).ends(getattr(model.generation_config, "eos_token_id", None))
    rendering.close()  # prompts are written by the processes of `tokenizing`
    adapters: Adapters | None = None
    if adapter is not None:
        model, adapters = _with_adapter(model, adapter, config)
    model.requires_grad_(False)
    vocab_size = model.config.get_text_config().vocab_size
    max_context = _max_context(model, config)
    return Loaded(
        network=Network(
            model,
            max_context=max_context,
            max_cells=_max_cells(model, device, max_context, config),
            adapters=adapters,
        ),
        tokenizer=tokenizer,
        ends=ends,
        vocab_size=vocab_size,
        version_ends=frozenset() if adapter is None else artifacts.ends(adapter, vocab_size),
    )


def _places(config: ServingConfig, files: Path) -> tuple[Path, Path | None]:
    """The folders of the whole model and of the adapter. Raises DamagedArtifacts, CannotServe."""
    adapter = artifacts.adapter_folder(config.files)
    if not config.base_folder:
        if config.adapter_mode == "switched" or adapter is not None:
            raise CannotServe("an adapter needs a base model, and base_folder is empty")
        return files / artifacts.model_folder(config.files), None
    if adapter is None:
        if config.files:
            raise DamagedArtifacts("the files hold no adapter for the base model")
        return Path(config.base_folder), None
    return Path(config.base_folder), check_adapter(files / adapter)


def check_adapter(folder: Path) -> Path:
    """Raises CannotServe for an adapter of another kind than LoRA."""
    kind = artifacts.adapter_kind(folder)
    if kind != "LORA":
        raise CannotServe(f"the adapter is of kind {kind}; only LORA can be served")
    return folder


def _with_adapter(model: Any, folder: Path, config: ServingConfig) -> tuple[Any, Adapters | None]:
    from neuroweaver.serving.engine.adapters import LoraAdapters  # noqa: PLC0415 (peft, where there is an adapter)

    adapters = LoraAdapters(model, config.version, folder)
    if config.adapter_mode == "switched":
        return adapters.model, adapters
    return adapters.model.merge_and_unload(), None


def _max_context(model: Any, config: ServingConfig) -> int:
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not own:
        return config.max_context_tokens or 4096
    if config.max_context_tokens > own:
        raise CannotServe(f"max_context_tokens is {config.max_context_tokens}, but the model's context {own}")
    return config.max_context_tokens or int(own)


def _max_cells(model: Any, device: torch.device, max_context: int, config: ServingConfig) -> int:
    """Tokens whose keys and values may be held. Raises CannotServe if one request could not be."""
    shape = model.config.get_text_config()
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    bytes_per_token = 2 * shape.num_hidden_layers * heads * head_size * model.dtype.itemsize
    room: int = _cache_bytes(device, config.memory_limit_bytes) // bytes_per_token
    if room < max_context:
        raise CannotServe(
            f"a request of {max_context} tokens needs {max_context * bytes_per_token >> 20} MiB for its keys "
            f"and values, and there are {room * bytes_per_token >> 20}; lower max_context_tokens, or give it "
            "more memory"
        )
    return min(room, max_context * config.max_batch_size)


def _cache_bytes(device: torch.device, memory_limit_bytes: int) -> int:
    """memory_limit_bytes: of this process, beside its GPU; 0 for none."""
    free = int(_free_bytes(device) * _CACHE_SHARE)
    if not memory_limit_bytes or device.type == "cuda":
        return free
    own = psutil.Process()
    tokenizers = [child.pid for child in own.children()]
    left = max(0, memory_limit_bytes - held_bytes(own.pid, *tokenizers))
    return min(free, int(left * _LIMITED_SHARE))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free
