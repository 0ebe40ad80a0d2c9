from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroweaver.artifacts.content import Content, TransferError
from neuroweaver.oci import tar

FILES = {
    "a.txt": b"first",
    "b/c.bin": bytes(range(256)) * 9,
    "d/" + "e" * 90 + "/" + "f" * 90: b"far",
    "z": b"",
}


def entry(name="a.txt", content=b"first", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(file, entries, **options):
    with tarfile.open(file, "w", **options) as out:
        for info, content in entries:
            out.addfile(info, io.BytesIO(content))
    return file


def read(file):
    return {name: b"".join(part.chunks()) for name, part in tar.members(Content.of(file), "it").items()}


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_every_common_format_are_read(tmp_path, style):
    entries = [entry("./b", b"", type=tarfile.DIRTYPE), *(entry(*each) for each in FILES.items())]

    assert read(archive(tmp_path / "a.tar", entries, format=style)) == FILES


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar on this machine")
def test_what_the_tar_of_this_machine_packs_is_read_and_the_other_way_round(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "."], check=True)
    assert read(tmp_path / "a.tar") == FILES

    with (tmp_path / "b.tar").open("wb") as out:
        tar.write(out, [(name, len(content), [content]) for name, content in FILES.items()])
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "b.tar", "-C", tmp_path / "out"], check=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES


def test_a_written_archive_is_read_again_and_the_same_every_time(tmp_path):
    pieces = [(name, len(content), [content]) for name, content in FILES.items()]
    for name in ("a.tar", "b.tar"):
        with (tmp_path / name).open("wb") as out:
            tar.write(out, pieces)

    assert read(tmp_path / "a.tar") == FILES
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as known:
        assert {each.name: (each.mtime, each.uid, each.uname) for each in known} == dict.fromkeys(
            FILES, (0, 0, "")
        )


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_size_beyond_octal_digits_is_read(tmp_path, style):
    size = 9 * 1024**3
    with (tmp_path / "a.tar").open("wb") as file:
        header = entry(size=size)[0].tobuf(style)
        file.write(header)
        file.truncate(len(header) + size + 1024)  # a hole: nothing of it is on the disk

    assert tar.members(Content.of(tmp_path / "a.tar"), "it")["a.txt"].size == size


def test_a_piece_of_another_length_is_not_written():
    with pytest.raises(TransferError, match="a: has 3 bytes instead of 4"):
        tar.write(io.BytesIO(), [("a", 4, [b"abc"])])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a.txt: is a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b"}, "a.txt: is a hard link"),
        ({"type": tarfile.CHRTYPE}, "a.txt: is a device file"),
        ({"type": tarfile.BLKTYPE}, "a.txt: is a device file"),
        ({"type": tarfile.FIFOTYPE}, "a.txt: is a named pipe"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "a.txt: is a sparse file"),
        ({"type": b"Z"}, "a.txt: is not a regular file"),
        ({"name": "/etc/passwd"}, "is not a name that is taken"),
        ({"name": "../a"}, "is not a name that is taken"),
        ({"name": "a/../../b"}, "is not a name that is taken"),
        ({"name": "a\\b"}, "is not a name that is taken"),
        ({"name": "a\x1b[2J"}, "is not a name that is taken"),
        ({"name": "\udcff"}, "not UTF-8"),
        ({"pax_headers": {"GNU.sparse.major": "1"}}, "sparse"),
        ({"pax_headers": {"path": "../far"}}, "is not a name that is taken"),
        ({"pax_headers": {"size": "-512"}}, "cannot be read"),
        ({"pax_headers": {"size": "9" * 30}}, "cannot be read"),
        ({"pax_headers": {"size": "1000000"}}, "is cut off"),
        ({"pax_headers": {"comment": "x" * 70_000}}, "has a header of"),
    ],
    ids=str,
)
def test_what_could_harm_is_refused(tmp_path, fields, problem):
    with pytest.raises(TransferError, match=problem):
        read(archive(tmp_path / "a.tar", [entry(**fields)], format=tarfile.PAX_FORMAT))


def test_a_global_header_cannot_rename_files(tmp_path):
    with pytest.raises(TransferError, match="one path or size to several"):
        read(archive(tmp_path / "a.tar", [entry()], pax_headers={"path": "b"}))


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(TransferError, match=r"a\.txt: occurs twice in it"):
        read(archive(tmp_path / "a.tar", [entry(), entry("./a.txt", b"second")]))


def test_too_many_entries_are_refused(tmp_path):
    many = [entry(f"{number}", b"") for number in range(tar.MAX_ENTRIES + 1)]

    with pytest.raises(TransferError, match="more than 20000 entries"):
        read(archive(tmp_path / "a.tar", many))


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_archive_is_refused_with_a_word_on_what_to_do(tmp_path, mode):
    with tarfile.open(tmp_path / "a", f"w:{mode}") as out:
        info, content = entry(content=os.urandom(2000))
        out.addfile(info, io.BytesIO(content))

    with pytest.raises(TransferError, match=r"is compressed with .*: unpack it first"):
        read(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"x" * 1000, b"\0" * 100, b"x" * 512])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)

    with pytest.raises(TransferError, match=r"is not a tar|is cut off"):
        read(tmp_path / "a.tar")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read_within_its_bounds(tmp_path, data):
    file = archive(tmp_path / "a.tar", [entry(*each) for each in FILES.items()])
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    try:
        found = tar.members(Content.of(file), "it")
    except TransferError:
        return
    for part in found.values():
        assert 0 <= part.offset <= part.offset + part.size <= file.stat().st_size
        assert len(b"".join(part.chunks())) == part.size
