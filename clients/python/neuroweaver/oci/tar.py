"""Uncompressed tar archives: read where they lie, written the same every time.

The format: POSIX.1-2024, pax, "pax Interchange Format". Read strictly, since an archive comes from anybody:
regular files and folders are all that is taken, and no size that an archive names leads beyond its own bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from neuroweaver.artifacts.content import Content, TransferError

MAX_ENTRIES: Final = 20_000

_BLOCK: Final = 512
_MAX_EXTENSION_BYTES: Final = 64 * 1024
_REGULAR: Final = b"0\0"
_FOLDER: Final = b"5"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"
_GNU_LONG_NAME: Final = b"L"
_REFUSED: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device file",
    b"4": "a device file",
    b"6": "a named pipe",
    b"S": "a sparse file",
}
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)

Piece = tuple[str, int, Iterable[bytes]]
"""A file for an archive: its name, its size in bytes, and its bytes."""


def members(archive: Content, name: str) -> dict[str, Content]:
    """The archive's files by their names, each a part of the archive.

    name: what the archive is called in errors. Raises TransferError for anything but regular files and
    folders, names that lead elsewhere or occur twice, more than MAX_ENTRIES entries, and what is no tar.
    """
    found: dict[str, Content] = {}
    for count, entry in enumerate(_entries(archive, name), 1):
        if count > MAX_ENTRIES:
            raise TransferError(name, f"has more than {MAX_ENTRIES} entries")
        if entry.kind == _FOLDER:
            continue
        if entry.kind not in _REGULAR:
            raise TransferError(entry.name, f"is {_REFUSED.get(entry.kind, 'no regular file')} in {name}")
        path = _checked_name(entry.name, name)
        if path in found:
            raise TransferError(path, f"occurs twice in {name}")
        found[path] = Content(archive.file, archive.offset + entry.begin, entry.size)
    return found


def write(out: BinaryIO, pieces: Iterable[Piece]) -> None:
    """Raises TransferError for a piece that is not as long as it says."""
    for name, size, chunks in pieces:
        header = tarfile.TarInfo(name)
        header.size, header.mode = size, 0o644
        out.write(header.tobuf(tarfile.PAX_FORMAT))
        written = 0
        for chunk in chunks:
            written += out.write(chunk)
        if written != size:
            raise TransferError(name, f"has {written} bytes instead of {size}")
        out.write(bytes(-size % _BLOCK))
    out.write(bytes(2 * _BLOCK))


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: bytes
    begin: int
    size: int


def _entries(archive: Content, name: str) -> Iterator[_Entry]:
    """What the headers say, one entry after the other."""
    at = 0
    extended: dict[str, str] = {}
    while True:
        block = _read(archive, at, _BLOCK, name)
        if not any(block):
            return
        entry = _header(block, at + _BLOCK, name)
        if entry.kind in _PAX + _PAX_GLOBAL + _GNU_LONG_NAME:
            if entry.size > _MAX_EXTENSION_BYTES:
                raise TransferError(name, f"has a header of {entry.size} bytes at byte {at}")
            text = _read(archive, entry.begin, entry.size, name)
            extended |= _extension(entry.kind, text, name)
        else:
            if extended:
                entry = _extended(entry, extended, name)
                extended = {}
            yield entry
        at = entry.begin + entry.size + -entry.size % _BLOCK
        if entry.begin + entry.size > archive.size:
            raise TransferError(name, f"is cut off in {entry.name}")


def _header(block: bytes, begin: int, name: str) -> _Entry:
    """Field positions: POSIX.1-2024, pax, ustar interchange format."""
    # The checksum counts its own field as spaces.
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    size = _number(block[124:136])
    if _number(block[148:156]) != checksum or size < 0:
        program = next((each for magic, each in _COMPRESSED if block.startswith(magic)), "")
        told = f"is compressed with {program}: unpack it first" if program else "is no tar, or a damaged one"
        raise TransferError(name, told)
    path = _text(block[:100], name)
    if block[257:263] == b"ustar\0" and block[345]:
        path = f"{_text(block[345:500], name)}/{path}"
    # Before ustar, a folder was told by the slash behind its name.
    kind = _FOLDER if block[156:157] in _REGULAR and path.endswith("/") else block[156:157]
    return _Entry(path, kind, begin, size)


def _extension(kind: bytes, text: bytes, name: str) -> dict[str, str]:
    """What a header before another one says of it."""
    if kind == _GNU_LONG_NAME:
        return {"path": _text(text, name)}
    records = dict(_records(text, name))
    if any(key.startswith("GNU.sparse.") for key in records):
        raise TransferError(name, "holds a sparse file")
    meant = {key: value for key, value in records.items() if key in {"path", "size"}}
    if kind == _PAX_GLOBAL and meant:
        raise TransferError(name, "gives one path or size to several files")
    return meant


def _records(text: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Each is its length, a space, KEY=VALUE and a line feed; the length counts all of that."""
    at = 0
    while at < len(text):
        length, space, _ = text[at : at + 8].partition(b" ")
        end = at + int(length) if space and length.isdigit() else 0
        key, equals, value = text[at + len(length) + 1 : end].partition(b"=")
        if end > len(text) or not equals or not value.endswith(b"\n"):
            raise TransferError(name, "has a header that cannot be read")
        yield _text(key, name), _text(value[:-1], name)
        at = end


def _extended(entry: _Entry, extended: dict[str, str], name: str) -> _Entry:
    size = extended.get("size", str(entry.size))
    if not size.isdecimal() or len(size) > 18:
        raise TransferError(name, "has a header that cannot be read")
    return _Entry(extended.get("path", entry.name), entry.kind, entry.begin, int(size))


def _number(field: bytes) -> int:
    """Octal digits; or, in GNU's way for large files, a first byte of 0x80 and the number in the others.

    -1 for anything else.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return -1 if digits.strip(b"01234567") else int(digits or b"0", 8)


def _text(field: bytes, name: str) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise TransferError(name, "has a name that is not UTF-8") from error


def _checked_name(path: str, name: str) -> str:
    parts = path.removeprefix("./").split("/")
    if "\\" in path or not path.isprintable() or path.startswith("/") or {"", ".", ".."} & set(parts):
        raise TransferError(path, f"is no name that is taken from {name}")
    return "/".join(parts)


def _read(archive: Content, begin: int, size: int, name: str) -> bytes:
    if begin + size > archive.size:
        raise TransferError(name, f"is cut off at byte {archive.size}")
    return b"".join(Content(archive.file, archive.offset + begin, size).chunks())
