from __future__ import annotations

import io
import json
import shutil

import pytest
from rich.console import Console

from clients.registry_server import adapter, prepared, registry_at
from neuroweaver.cli.terminal.transfer_bar import transfer_bar

FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """advisor@1.0.0 with an adapter."""
    folder = adapter(tmp_path_factory.mktemp("files"))
    return prepared(
        tmp_path_factory.mktemp("home"),
        [
            ("model", "register", "advisor", "--description", "Answers service questions"),
            ("model", "upload", "advisor", folder, "--base", "tiny", "--metric", "accuracy=0.75:higher"),
        ],
    )


@pytest.fixture(autouse=True)
def registry(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    with registry_at(tmp_path / "home"):
        yield


def test_a_folder_becomes_a_version(neuroweaver, tmp_path):
    folder = adapter(tmp_path / "next", fill=b"b")
    (folder / ".DS_Store").write_text("")

    outcome = neuroweaver(
        "model", "upload", "advisor", folder, "--parent", "1.0.0", "--bump", "major", "-m", "anew"
    )

    size = sum((folder / path).stat().st_size for path in FILES)
    assert outcome.out == f"advisor@2.0.0 TRAINED  2 files, {size:,} bytes\n"
    assert outcome.err == "! .DS_Store is hidden; skipped\n"
    made = json.loads(neuroweaver("model", "show", "advisor@2.0.0", "--json").out)
    assert [each["path"] for each in made["artifacts"]] == list(FILES)
    assert (made["parent_version"], made["base"]["name"]) == ("1.0.0", "tiny")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nobody", "next"), 3, "nobody"),
        (("advisor", "next", "--parent", "9.0.0"), 3, "9.0.0"),
        (("advisor", "next", "--version", "1.0.0", "--base", "tiny"), 5, "already exists: advisor@1.0.0"),
        (("advisor", "nowhere"), 2, "nowhere"),
        (("advisor", "odd", "--base", "tiny"), 2, "FOLDER: "),
    ],
)
def test_what_would_be_refused_is_refused_before_anything_is_sent(
    neuroweaver, tmp_path, arguments, code, told
):
    adapter(tmp_path / "next", fill=b"c")
    adapter(tmp_path / "odd", fill=b"d")
    (tmp_path / "odd" / "link").symlink_to(tmp_path)
    stored = sorted((tmp_path / "home/artifacts").rglob("*"))

    outcome = neuroweaver("model", "upload", *arguments)

    assert outcome.code == code
    assert told in outcome.err
    assert sorted((tmp_path / "home/artifacts").rglob("*")) == stored


def test_weights_that_are_no_safetensors_are_refused(neuroweaver, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")

    outcome = neuroweaver("model", "upload", "advisor", folder, "--json")

    assert outcome.code == 2
    assert "pickle" in outcome.error["message"]


def test_a_download_is_what_was_uploaded(neuroweaver, tmp_path):
    outcome = neuroweaver("model", "download", "advisor")

    original = adapter(tmp_path / "original")
    assert outcome.code == 0
    for path in FILES:
        assert (tmp_path / "advisor-1.0.0" / path).read_bytes() == (original / path).read_bytes()
        assert f"advisor-1.0.0/{path}" in outcome.out


@pytest.mark.parametrize("output", ["layout", "advisor.tar"])
def test_an_exported_version_comes_back_as_another_models(neuroweaver, output):
    told = json.loads(neuroweaver("model", "export", "advisor@1.0.0", "-o", output, "--json").out)
    outcome = neuroweaver("model", "import", output, "--as", "copy", "--version", "3.0.0")
    again = neuroweaver("model", "import", output, "--as", "copy", "--version", "3.0.0")

    assert told["output"] == output
    assert told["manifest_digest"].startswith("sha256:")
    assert outcome.out == again.out
    assert outcome.out.startswith("copy@3.0.0 TRAINED  2 files")
    original, copy = (
        json.loads(neuroweaver("model", "show", reference, "--json").out)
        for reference in ("advisor@1.0.0", "copy@3.0.0")
    )
    for field in ("artifacts", "metrics", "base", "config"):
        assert copy.get(field) == original.get(field)


def test_an_export_has_a_name_of_its_own(neuroweaver, tmp_path):
    outcome = neuroweaver("model", "export", "advisor")

    assert outcome.out.startswith("advisor@1.0.0 → advisor-1.0.0.tar\nmanifest sha256:")
    assert (tmp_path / "advisor-1.0.0.tar").is_file()


def test_what_is_no_layout_is_refused(neuroweaver, tmp_path):
    (tmp_path / "text.tar").write_text("nothing of the kind" * 100)

    outcome = neuroweaver("model", "import", "text.tar")

    assert outcome.code == 2
    assert outcome.err.startswith("neuroweaver: LAYOUT: text.tar: is not a tar")


def test_a_card_in_a_pipe_is_markdown_and_in_a_file_the_same(neuroweaver, tmp_path):
    printed = neuroweaver("model", "card", "advisor")
    written = neuroweaver("model", "card", "advisor@1.0.0", "-o", "card.md")
    told = json.loads(neuroweaver("model", "card", "advisor", "--json").out)

    assert printed.out.startswith("---\n")
    assert "# advisor 1.0.0" in printed.out
    assert printed.out == (tmp_path / "card.md").read_text() == told["markdown"]
    assert written.out == "card.md\n"


def test_a_card_on_a_terminal_is_rendered_without_its_front_matter(neuroweaver, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    outcome = neuroweaver("model", "card", "advisor")

    assert "library_name" not in outcome.out
    assert "# advisor" not in outcome.out
    assert "Answers service questions" in outcome.out


def test_a_version_without_files_says_so(neuroweaver):
    neuroweaver("model", "create", "advisor", "--version", "2.0.0")

    assert neuroweaver("model", "download", "advisor@2.0.0").out == "The version has no files.\n"


def test_how_far_a_transfer_is_stands_on_a_terminal_only(monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("neuroweaver.cli.terminal.transfer_bar.error_console", lambda: screen)

    with transfer_bar("Uploading", {"a": 1000, "b": 3000}) as on_progress:
        on_progress("a", 1000, 1000)
        on_progress("b", 1000, 3000)
    with transfer_bar("Uploading", {}) as nothing_to_do:
        pass
    monkeypatch.setattr(
        "neuroweaver.cli.terminal.transfer_bar.error_console", lambda: Console(file=io.StringIO())
    )
    with transfer_bar("Uploading", {"a": 1}) as in_a_pipe:
        pass

    assert "2.0/4.0 kB" in screen.file.getvalue()
    assert nothing_to_do is in_a_pipe is None
