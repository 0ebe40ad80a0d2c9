"""Uncompressed tar archives: read where they lie, written the same every time.

An archive comes from anybody: regular files and folders are all that is taken, and no size that it names
leads beyond its own bytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final, cast

from neuroweaver.artifacts.content import Content, TransferError, opened

MAX_ENTRIES: Final = 20_000

_BLOCK: Final = tarfile.BLOCKSIZE
_MAX_HEADER_BYTES: Final = 64 * 1024
_REFUSED: Final = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device file",
    tarfile.BLKTYPE: "a device file",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
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
    files: dict[str, Content] = {}
    with opened(archive.file) as source:
        for count, entry in enumerate(_entries(_Headers(archive, source, name)), 1):
            if count > MAX_ENTRIES:
                raise TransferError(name, f"has more than {MAX_ENTRIES} entries")
            if entry.isdir():
                continue
            if entry.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
                raise TransferError(
                    entry.name, f"is {_REFUSED.get(entry.type, 'not a regular file')} in {name}"
                )
            path = _checked_name(entry.pax_headers.get("path", entry.name), name)
            if path in files:
                raise TransferError(path, f"occurs twice in {name}")
            files[path] = Content(archive.file, archive.offset + entry.offset_data, entry.size)
    return files


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


class _Headers:
    """The archive as `tarfile` reads it: headers alone, and none that would fill the memory."""

    def __init__(self, archive: Content, source: BinaryIO, name: str) -> None:
        self.size = archive.size
        self.name = name
        self._begin = archive.offset
        self._source = source
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise TransferError(self.name, f"has a header of {size} bytes at byte {self._at}")
        self._source.seek(self._begin + self._at)
        content = self._source.read(max(0, min(size, self.size - self._at)))
        self._at += len(content)
        return content


def _entries(headers: _Headers) -> Iterator[tarfile.TarInfo]:
    """Raises TransferError for an archive that readers could understand differently."""
    try:
        archive = tarfile.TarFile(fileobj=cast("Any", headers), encoding="utf-8", errors="strict")
        while (entry := archive.next()) is not None:
            _check(entry, archive, headers)
            yield entry
    except UnicodeDecodeError as error:
        raise TransferError(headers.name, "has a name that is not UTF-8") from error
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise TransferError(headers.name, _diagnosis(headers)) from error
    # Where a header is damaged, or there is none, `tarfile` takes it for the end.
    headers.seek(archive.offset)
    end = headers.read(_BLOCK)
    if len(end) < _BLOCK:
        raise TransferError(headers.name, f"is cut off at byte {headers.size}")
    if any(end):
        raise TransferError(headers.name, _diagnosis(headers))


def _check(entry: tarfile.TarInfo, archive: tarfile.TarFile, headers: _Headers) -> None:
    if any(key.startswith("GNU.sparse.") for key in entry.pax_headers):
        raise TransferError(headers.name, "holds a sparse file")
    if {"path", "size"} & archive.pax_headers.keys():
        raise TransferError(headers.name, "gives one path or size to several files")
    size = entry.pax_headers.get("size", str(entry.size))
    if not size.isdecimal() or len(size) > 18:
        raise TransferError(headers.name, "has a header that cannot be read")
    if entry.offset_data + entry.size > headers.size:
        raise TransferError(headers.name, f"is cut off in {entry.name}")


def _diagnosis(headers: _Headers) -> str:
    headers.seek(0)
    begin = headers.read(_BLOCK)
    program = next((program for magic, program in _COMPRESSED if begin.startswith(magic)), "")
    return f"is compressed with {program}: unpack it first" if program else "is not a tar, or is damaged"


def _checked_name(path: str, name: str) -> str:
    parts = path.removeprefix("./").split("/")
    if "\\" in path or not path.isprintable() or path.startswith("/") or {"", ".", ".."} & set(parts):
        raise TransferError(path, f"is not a name that is taken from {name}")
    return "/".join(parts)
