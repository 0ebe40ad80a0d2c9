from __future__ import annotations

import hashlib

import pytest

from neuroweaver.artifacts.content import Arrival, Content, Damaged, digest_of, is_there, sha256_of
from neuroweaver.artifacts.file import File, is_inside
from neuroweaver.artifacts.transfer import artifact_of

TEXT = b"adapter"
FILE = File("a/b.txt", hashlib.sha256(TEXT).hexdigest(), len(TEXT))


@pytest.mark.parametrize("path", ["a", "a/b", "a..b/c", "two words"])
def test_a_path_within_the_folder_is_inside(path):
    assert is_inside(path)


@pytest.mark.parametrize("path", ["", "/a", "..", "../a", "a/../../b", "a/..", "a\0b", ".", "//a"])
def test_a_path_that_leads_out_or_names_no_file_is_not_inside(path):
    assert not is_inside(path)


def test_an_artifact_of_a_version_and_a_file_are_the_same():
    assert File.of(artifact_of(FILE)) == FILE


def test_all_bytes_of_a_file_are_taken_in_any_pieces():
    arrival = Arrival(FILE)
    for at in range(len(TEXT)):
        assert not arrival.is_whole
        arrival.take(TEXT[at : at + 1])
    arrival.check()
    assert arrival.is_whole


@pytest.mark.parametrize("content", [b"", TEXT[:-1], b"Adapter"])
def test_what_is_another_file_is_damaged(content):
    arrival = Arrival(FILE)
    arrival.take(content)
    with pytest.raises(Damaged, match=rf"a/b\.txt: arrived damaged: {len(content)} bytes with SHA-256"):
        arrival.check()


def test_more_bytes_than_the_file_has_are_refused_at_once():
    arrival = Arrival(FILE)
    with pytest.raises(Damaged, match="more than 7 bytes, not 7 bytes"):
        arrival.take(TEXT + b"x")


def test_content_is_described_by_its_digest_and_size(tmp_path):
    place = tmp_path / "b.txt"
    place.write_bytes(TEXT)
    assert Content.of(place).described("a/b.txt") == FILE
    assert digest_of(place) == sha256_of([TEXT[:3], TEXT[3:]]) == FILE.digest
    assert is_there(FILE, place)
    place.write_bytes(b"Adapter")
    assert not is_there(FILE, place)
    assert not is_there(FILE, tmp_path / "none")
