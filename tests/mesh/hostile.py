"""Requests as an enemy writes them, made from the descriptors of all RPCs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from neuroweaver.v1 import deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2, worker_pb2

FILES = (deployer_pb2, experiment_pb2, registry_pb2, trainer_pb2, worker_pb2)
REQUESTS: dict[str, Descriptor] = {
    method.input_type.full_name: method.input_type
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

Path = tuple[FieldDescriptor, ...]


def paths(kind: Descriptor, above: tuple[Descriptor, ...] = ()) -> Iterator[Path]:
    """The paths of all fields under a message type; of a type that holds itself, one round."""
    if kind in above:
        return
    for field in kind.fields:
        yield (field,)
        if field.message_type is not None:
            yield from ((field, *rest) for rest in paths(field.message_type, (*above, kind)))


def is_text(field: FieldDescriptor) -> bool:
    return field.type == field.TYPE_STRING


def shown(path: Path) -> str:
    """As a violation names it: the first element of each list, the empty key of each map."""
    text = ""
    for field, inner in pairwise((*path, None)):
        if is_entry(field.containing_type):
            continue
        text += f".{field.name}"
        if field.is_repeated and (inner is not None or is_text(field)):
            text += '[""]' if is_entry(field.message_type) else "[0]"
    return text.removeprefix(".")


def is_entry(kind: Descriptor | None) -> bool:
    return kind is not None and kind.GetOptions().map_entry


def varint(number: int) -> bytes:
    head = b""
    while number > 0x7F:
        head += bytes([number & 0x7F | 0x80])
        number >>= 7
    return head + bytes([number])


def framed(path: Path, content: bytes) -> bytes:
    """A message with this content in the last field of the path."""
    for field in reversed(path):
        content = varint(field.number << 3 | 2) + varint(len(content)) + content
    return content


def flooded(path: Path, size: int) -> bytes:
    """A message whose last field of the path holds as many elements as `size` bytes can: empty ones, or zeros."""
    *outer, last = path
    is_number = last.message_type is None and last.type not in (last.TYPE_STRING, last.TYPE_BYTES)
    content = framed((last,), bytes(size)) if is_number else framed((last,), b"") * (size // 2)
    return framed(tuple(outer), content)
