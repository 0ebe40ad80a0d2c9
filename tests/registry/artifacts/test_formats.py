from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.artifacts.formats import MAX_SAFETENSORS_HEADER_BYTES, check, check_beginning
from neuroweaver.registry.domain.paths import Kind, kind_of, media_type_of


def refused(content: bytes, kind: Kind = Kind.SAFETENSORS) -> str:
    """Why the content is refused; fails if it is not."""
    with pytest.raises(InvalidArgument) as error:
        check("chunk", kind, io.BytesIO(content), len(content))
    ((field, why),) = error.value.violations
    assert field == "chunk"
    return why


def accept(content: bytes, kind: Kind = Kind.SAFETENSORS) -> None:
    check("chunk", kind, io.BytesIO(content), len(content))


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(
    begin: int = 0, end: int = 4, shape: Any = (1,), dtype: str = "F32", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": torch.zeros(3, 4)},
        {"a": torch.zeros(0), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(True)},
        {"a": torch.zeros(2, dtype=torch.float8_e4m3fn), "b": torch.zeros(3, dtype=torch.complex64)},
    ],
)  # fmt: skip
def test_what_the_library_writes_is_taken(tensors: dict[str, torch.Tensor]):
    accept(save(tensors, {"format": "pt"}))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x01\x00", id="shorter than its prefix"),
        pytest.param(safetensors(b"[]"), id="a list"),
        pytest.param(safetensors(b" {}"), id="a space before the brace"),
        pytest.param(safetensors(b"{"), id="cut JSON"),
        pytest.param(safetensors(b'{"a": ' + b"[" * 200_000), id="deep JSON"),
        pytest.param(safetensors(b'{"\xff": 1}'), id="not UTF-8"),
        pytest.param(safetensors({"a": tensor()}), id="data missing"),
        pytest.param(safetensors({"a": tensor()}, b"1234more"), id="data left over"),
        pytest.param(safetensors({"a": tensor(), "b": tensor()}, b"1234"), id="overlap"),
        pytest.param(safetensors({"a": tensor(4, 8)}, b"holehole"), id="a hole"),
        pytest.param(safetensors({"a": tensor(shape=[2])}, b"1234"), id="shape too large"),
        pytest.param(safetensors({"a": tensor(shape=[-1])}, b"1234"), id="negative length"),
        pytest.param(safetensors({"a": tensor(shape=[True])}, b"1234"), id="boolean length"),
        pytest.param(safetensors({"a": tensor(shape=[2**62, 2**62])}, b"1234"), id="overflow"),
        pytest.param(safetensors({"a": tensor(4, 0)}, b"1234"), id="ends before it begins"),
        pytest.param(safetensors({"a": tensor(dtype="OBJECT")}, b"1234"), id="unknown dtype"),
        pytest.param(safetensors({"a": tensor(code="os.system")}, b"1234"), id="something more"),
        pytest.param(safetensors({"a": 1}), id="no description"),
        pytest.param(safetensors({"__metadata__": {"a": 1}}), id="metadata not text"),
        pytest.param(safetensors(b'{"a": ' + json.dumps(tensor()).encode() + b', "a": 1}', b"1234"), id="a name twice"),
    ],
)  # fmt: skip
def test_a_malformed_safetensors_file_is_refused(content: bytes):
    assert "is not a safetensors file" in refused(content)


def test_an_oversize_header_is_refused_before_it_is_read():
    length = MAX_SAFETENSORS_HEADER_BYTES + 1

    with pytest.raises(InvalidArgument, match=f"header of {length} bytes"):
        check_beginning("chunk", Kind.SAFETENSORS, struct.pack("<Q", length), 10 * length)


def test_a_header_that_ends_beyond_the_file_is_refused():
    assert "beyond the file" in refused(struct.pack("<Q", 2**63) + b"{}")


headers = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["U8", "F16", "F4"]),
            "shape": st.lists(st.integers(-1, 3), max_size=2),
            "data_offsets": st.lists(st.integers(-1, 6), min_size=2, max_size=2),
        }
    ),
)


@given(headers, st.binary(max_size=8))
def test_what_is_taken_is_what_the_library_reads(header: dict[str, Any], data: bytes):
    content = safetensors(header, data)
    try:
        accept(content)
    except InvalidArgument:
        with pytest.raises(SafetensorError):
            deserialize(content)
    else:
        assert len(deserialize(content)) == len(header)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", Kind)
def test_a_pickle_is_refused_under_every_name(protocol: int, kind: Kind):
    assert "a pickle" in refused(pickle.dumps({"weights": [1.0]}, protocol), kind)


@pytest.mark.parametrize("protocol", [0, 1])
def test_an_old_pickle_is_no_safetensors_file(protocol: int):
    assert "is not a safetensors file" in refused(pickle.dumps({"weights": [1.0]}, protocol))


def test_what_torch_saves_is_refused_under_every_name():
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    for kind in Kind:
        assert "a zip archive" in refused(file.getvalue(), kind)


def test_an_empty_archive_is_refused():
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()

    assert "a zip archive" in refused(file.getvalue(), Kind.TEXT)


@pytest.mark.parametrize(
    "path",
    ["a.bin", "pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.PKL", "a.npy", "a.npz", "a.h5", "a.gguf",
     "a.zip", "a.tar.gz", "a.py", "a.so", "a.exe", "a.onnx", "a.safetensors.bin"],
)  # fmt: skip
def test_names_of_other_kinds_are_refused(path: str):
    with pytest.raises(InvalidArgument) as error:
        kind_of("header.path", path)

    assert error.value.violations[0][0] == "header.path"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("adapter/adapter_model.safetensors", Kind.SAFETENSORS),
        ("a.SAFETENSORS", Kind.SAFETENSORS),
        ("adapter_config.json", Kind.TEXT),
        ("chat_template.jinja", Kind.TEXT),
        ("LICENSE", Kind.TEXT),
        ("tokenizer.model", Kind.SENTENCEPIECE),
        ("loss.png", Kind.PNG),
    ],
)
def test_names_of_a_trained_model_are_taken(path: str, kind: Kind):
    assert kind_of("header.path", path) is kind


def test_text_is_utf_8_without_zero_bytes():
    accept('{"größe": 1}'.encode(), Kind.TEXT)
    accept(b"", Kind.TEXT)
    assert "UTF-8" in refused(b"\xff\xfe", Kind.TEXT)
    assert "UTF-8" in refused("ä".encode()[:1], Kind.TEXT)
    assert "zero bytes" in refused(b"a\0b", Kind.TEXT)


def test_a_character_may_lie_across_two_reads():
    accept(b"a" * (1024 * 1024 - 1) + "ä".encode(), Kind.TEXT)


def test_a_picture_is_a_picture():
    accept(b"\x89PNG\r\n\x1a\n....", Kind.PNG)
    assert "PNG" in refused(b"GIF89a..", Kind.PNG)


def test_the_media_type_comes_from_the_name():
    assert media_type_of("a/b.safetensors") == "application/vnd.safetensors"
    assert media_type_of("a.json") == "application/json"
