"""The bytes of a file against what its name says, so that nothing else gets in.

Weights come as safetensors, which hold numbers and nothing that runs. Of the rest, only kinds are taken that
nobody loads as code. A name proves nothing, so the bytes are looked at.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO, Final

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.mesh.wire.json_values import Broken, parsed
from neuroweaver.registry.domain.paths import Kind

# Room for some 100,000 tensors in one file; the format's own readers stop at 100 MB.
MAX_SAFETENSORS_HEADER_BYTES: Final = 16 * 1024 * 1024

_PREFIX_BYTES: Final = 8
_READ_BYTES: Final = 1024 * 1024


# Names by which a refusal is told apart; what is not known here is refused all the same.
_MAGIC: Final = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"PK\x05\x06", "a zip archive"),
    *((bytes([0x80, protocol]), "a pickle") for protocol in range(2, 6)),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
)

_PNG: Final = b"\x89PNG\r\n\x1a\n"

# Bits an element, for every type that safetensors 0.8 knows.
_DTYPE_BITS: Final = (
    {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
    | dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "U32", "F32"), 32)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
)


def check_beginning(field: str, kind: Kind, beginning: bytes, size: int) -> None:
    """Refuses from its first bytes what `check` would refuse later. `size`: of the whole file, in bytes.

    Raises InvalidArgument naming `field`.
    """
    for magic, name in _MAGIC:
        if beginning.startswith(magic):
            raise InvalidArgument(field, f"is {name}; weights are accepted as safetensors only")
    if kind is Kind.SAFETENSORS and len(beginning) >= _PREFIX_BYTES:
        _header_length(field, beginning[:_PREFIX_BYTES], size)
    if kind is Kind.PNG and len(beginning) >= len(_PNG) and not beginning.startswith(_PNG):
        raise InvalidArgument(field, "is not a PNG image")


def check(field: str, kind: Kind, file: BinaryIO, size: int) -> None:
    """Looks at a whole file, open at its beginning. Raises InvalidArgument naming `field`."""
    check_beginning(field, kind, file.read(_PREFIX_BYTES), size)
    file.seek(0)
    _CHECKS[kind](field, file, size)


def _check_safetensors(field: str, file: BinaryIO, size: int) -> None:
    length = _header_length(field, file.read(_PREFIX_BYTES), size)
    header = _parsed_header(field, file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _not_safetensors(field, "its __metadata__ is not a map of strings")
    spans = sorted(_span(field, name, tensor) for name, tensor in header.items())
    end = 0
    for begin, stop in spans:
        if begin != end:
            raise _not_safetensors(field, "its tensors overlap or leave gaps, where anything could be hidden")
        end = stop
    if end != size - _PREFIX_BYTES - length:
        raise _not_safetensors(field, "its tensors do not fill the file to its end")


def _header_length(field: str, prefix: bytes, size: int) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _PREFIX_BYTES or length > size - _PREFIX_BYTES:
        raise _not_safetensors(field, "its header would end beyond the file")
    if length > MAX_SAFETENSORS_HEADER_BYTES:
        raise _not_safetensors(
            field, f"its header of {length} bytes is larger than {MAX_SAFETENSORS_HEADER_BYTES}"
        )
    return length


def _parsed_header(field: str, text: bytes) -> dict[str, Any]:
    # Trailing spaces align the tensors; anything before the brace would be read differently by other readers.
    if not text.startswith(b"{"):
        raise _not_safetensors(field, "its header does not begin with {")
    try:
        header: dict[str, Any] = parsed(text, pairs=_unique)
    except Broken as error:
        raise _not_safetensors(field, "its header is not JSON with unique names") from error
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could each believe another of two equal names."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a name occurs twice")
    return unique


def _span(field: str, name: str, tensor: Any) -> tuple[int, int]:
    """Where a tensor lies behind the header, in bytes."""
    match tensor:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)], **rest} if (
            not rest
        ):
            pass
        case _:
            raise _not_safetensors(
                field, f"tensor {name[:100]} is not described by dtype, shape and data_offsets"
            )
    if dtype not in _DTYPE_BITS:
        raise _not_safetensors(field, f"tensor {name[:100]} has an unknown dtype")
    if len(shape) > 64 or not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise _not_safetensors(field, f"tensor {name[:100]} has an invalid shape")
    if (
        not 0 <= begin <= end
        or bool in {type(begin), type(end)}
        or prod(shape) * _DTYPE_BITS[dtype] != (end - begin) * 8
    ):
        raise _not_safetensors(field, f"tensor {name[:100]} does not fill its data_offsets")
    return begin, end


def _check_text(field: str, file: BinaryIO, _size: int) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(_READ_BYTES):
            if b"\0" in chunk:
                raise InvalidArgument(field, "is not text: it holds zero bytes")
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, "is not text in UTF-8") from error


def _check_sentencepiece(field: str, file: BinaryIO, _size: int) -> None:
    # Field 1 of its message, the first piece: the tag, a length, then that many bytes.
    if file.read(1) != b"\n":
        raise InvalidArgument(field, "is not a SentencePiece model")


def _check_png(field: str, file: BinaryIO, _size: int) -> None:
    if file.read(len(_PNG)) != _PNG:
        raise InvalidArgument(field, "is not a PNG image")


_CHECKS: Final[dict[Kind, Callable[[str, BinaryIO, int], None]]] = {
    Kind.SAFETENSORS: _check_safetensors,
    Kind.TEXT: _check_text,
    Kind.SENTENCEPIECE: _check_sentencepiece,
    Kind.PNG: _check_png,
}


def _not_safetensors(field: str, why: str) -> InvalidArgument:
    return InvalidArgument(field, f"is not a safetensors file: {why}")
