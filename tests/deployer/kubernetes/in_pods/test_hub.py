from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import errors as hub_errors

from neuroweaver.base_models.folders import digests
from neuroweaver.deployer.kubernetes.in_pods import hub as hub_module
from neuroweaver.deployer.kubernetes.manifests import base_model
from neuroweaver.deployer.kubernetes.settings import ClusterSettings
from ports import free_port

NAME = "acme/base"
WEIGHTS = os.urandom(300_000)
NEWEST, OLDER = "a" * 40, "b" * 40
SERVED = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"\x00\x01",
}
REST = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"# Base",
    "consolidated.safetensors": b"other",
    "modeling_base.py": b"raise SystemExit",
    "onnx/model.safetensors": b"another",
    "pytorch_model.bin": b"pickle",
    "tokenizer.pkl": b"pickle",
    "tokenizer.py": b"raise SystemExit",
    "training_args.bin": b"pickle",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        self.hub.authorizations.add(self.headers.get("Authorization", ""))
        if self.hub.refusal:
            self.reply(self.hub.refusal[0], b"{}", {"X-Error-Code": self.hub.refusal[1]})
        elif self.hub.html:
            self.reply(200, b"<html>welcome</html>", {"Content-Type": "text/html"})
        elif path.startswith("/api/"):
            status, told = self.hub.api(path)
            code = {} if status == 200 else {"X-Error-Code": "RevisionNotFound"}
            self.reply(status, json.dumps(told).encode(), {"Content-Type": "application/json"} | code)
        else:
            self.file(path)

    def file(self, path: str) -> None:
        match = re.fullmatch(rf"/{NAME}/resolve/([0-9a-f]+)/(.+)", path)
        content = self.hub.commits[match[1]].get(match[2]) if match else None
        if content is None:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": match[1], "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if match[2] in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        is_broken = self.command == "GET" and self.hub.breaks.get(match[2], 0) > 0
        if is_broken:
            self.hub.breaks[match[2]] -= 1
        self.reply(206 if start else 200, content[start:], headers, is_broken=is_broken)

    def reply(self, status, body, headers, *, is_broken=False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_broken else body)
        self.close_connection = self.close_connection or is_broken

    def log_message(self, *_):
        return


class Hub:
    """A fake: one model, with the pages and headers that huggingface_hub reads of a hub."""

    def __init__(self) -> None:
        self.commits = {NEWEST: SERVED | REST}
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str] = set()
        self.refusal: tuple[int, str] | None = None
        self.html = False
        self.tells_digests = True
        self.sizes: dict[str, int] = {}
        self.damaged: set[str] = set()
        self.breaks: dict[str, int] = {}
        """How often a download of a file breaks off in the middle."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def api(self, path: str) -> tuple[int, object]:
        """As `GET /api/models/…` answers on the real hub, as far as it is read."""
        prefix = f"/api/models/{NAME}"
        if match := re.fullmatch(rf"{prefix}/tree/([0-9a-f]+)", path):
            files = self.commits[match[1]]
            folders = {name.partition("/")[0] for name in files if "/" in name}
            told: list[object] = [{"type": "directory", "path": each, "oid": "0" * 40} for each in folders]
            return 200, told + [self._listed(name, files[name]) for name in files if "/" not in name]
        if re.fullmatch(rf"{prefix}/commits/\w+", path):
            moment = "2026-01-01T00:00:00.000Z"
            return 200, [
                {"id": each, "title": "", "message": "", "authors": [], "date": moment}
                for each in self.commits
            ]
        revision = path.removeprefix(prefix).removeprefix("/revision/") or "main"
        commit = {"main": NEWEST, "v1": OLDER}.get(revision, revision)
        if commit not in self.commits:
            return 404, {}
        return 200, {"id": NAME, "sha": commit, "siblings": []}

    def _listed(self, name: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        told: dict[str, object] = {"type": "file", "path": name, "oid": digest[:40]}
        told["size"] = self.sizes.get(name, len(content))
        if self.tells_digests and name.endswith((".safetensors", ".bin", ".pkl", ".model")):
            told["lfs"] = {"oid": digest, "size": told["size"], "pointerSize": 134}
        return told

    def gets(self, name: str = "") -> list[str]:
        return [path for command, path in self.requests if command == "GET" and path.endswith(name)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.close()


def fetch(
    folder: Path, url: str, digest: str = "", revision: str = "", **environ: str
) -> tuple[int, str, str]:
    """As the init container runs it. The exit code, the reason, and what it wrote beside."""
    config = {"model": "support-bot", "version": "1.0.0", "files_folder": str(folder / "files"), "files": []}
    source = {
        "registry": "127.0.0.1:1",
        "model_id": "support-bot",
        "base_folder": str(folder / "base" / NAME),
        "base_digest": digest,
        "hub": {"repository": NAME, "revision": revision},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "source.json").write_text(json.dumps(source))
    command = [sys.executable, "-m", "neuroweaver.deployer.kubernetes.in_pods.fetch"]
    command += ["--config", str(folder / "config.json"), "--source", str(folder / "source.json")]
    told = {each["name"]: each["value"] for each in base_model.hub_environment(ClusterSettings(hub_url=url))}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=kept | told | {"HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(sys.path)} | environ,
    )
    return done.returncode, done.stderr.strip(), done.stdout


def files(folder: Path) -> dict[str, bytes]:
    base = folder / "base" / NAME
    return {
        str(path.relative_to(base)): path.read_bytes()
        for path in base.rglob("*")
        if path.is_file() and not path.relative_to(base).parts[0].startswith(".")
    }


def digest_of(content: dict[str, bytes], folder: Path) -> str:
    """As the trainer takes it of the folder that it trained on."""
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return digests(folder).base


@pytest.fixture
def digest(tmp_path: Path) -> str:
    return digest_of(SERVED, tmp_path / "trained")


def test_what_serving_reads_is_fetched_and_verified_and_nothing_else(hub: Hub, tmp_path: Path, digest: str):
    code, error, words = fetch(tmp_path, hub.url, digest)
    assert (code, error) == (0, "")
    assert files(tmp_path) == SERVED
    assert f"{tmp_path / 'base' / NAME}: verified" in words
    asked = {path.rpartition("/")[2] for command, path in hub.requests if "/resolve/" in path}
    assert asked == set(SERVED)


def test_the_digest_is_the_trainers_own(hub: Hub, tmp_path: Path):
    """The trainer fetches by the same library and the same names."""
    from neuroweaver.base_models.folders import HUB_FILES, HUB_IGNORED

    script = (
        "import sys, json, huggingface_hub as h; a = json.loads(sys.argv[1]); print(h.snapshot_download(**a))"
    )
    options = {"repo_id": NAME, "revision": NEWEST, "cache_dir": str(tmp_path / "cache")}
    options |= {"allow_patterns": list(HUB_FILES), "ignore_patterns": list(HUB_IGNORED)}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(options)],
        capture_output=True, text=True, check=True,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
    )  # fmt: skip
    trained_on = Path(done.stdout.strip())
    assert not [path for path in trained_on.iterdir() if path.suffix in {".py", ".bin", ".pkl"}]
    code, error, _ = fetch(tmp_path, hub.url, digests(trained_on).base)
    assert (code, error) == (0, "")
    assert digests(tmp_path / "base" / NAME) == digests(trained_on)


def test_what_is_whole_is_not_asked_for_again(hub: Hub, tmp_path: Path, digest: str):
    fetch(tmp_path, hub.url, digest)
    hub.requests.clear()
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")
    assert hub.requests == []


def test_a_model_that_the_hub_has_changed_since_is_found_among_its_commits(
    hub: Hub, tmp_path: Path, digest: str
):
    hub.commits = {
        NEWEST: SERVED | {"config.json": b"{}", "model-00003-of-00003.safetensors": b"new"},
        OLDER: SERVED,
    }
    code, error, words = fetch(tmp_path, hub.url, digest)
    assert (code, error) == (0, "")
    assert files(tmp_path) == SERVED
    assert f"commit {OLDER}" in words


def test_another_digest_fetches_no_weights(hub: Hub, tmp_path: Path):
    hub.commits[OLDER] = SERVED | {"config.json": b"{}"}
    code, error, _ = fetch(tmp_path, hub.url, "d" * 64)
    assert code == 3
    assert f"the base model {NAME}: none of its 50 newest commits on {hub.url} has the digest dddd" in error
    assert "NEUROWEAVER_BASE_MODELS_CLAIM" in error
    assert not hub.gets(".safetensors")


def test_one_who_trained_on_a_whole_copy_gets_its_weights(hub: Hub, tmp_path: Path):
    whole = SERVED | {"consolidated.safetensors": REST["consolidated.safetensors"]}
    assert fetch(tmp_path, hub.url, digest_of(whole, tmp_path / "trained"))[:2] == (0, "")
    assert files(tmp_path) == whole


def test_a_revision_is_fetched_where_one_was_trained_on(hub: Hub, tmp_path: Path):
    hub.commits[OLDER] = SERVED | {"tokenizer.json": b"[]"}
    assert fetch(tmp_path, hub.url, revision="v1")[:2] == (0, "")
    assert files(tmp_path) == hub.commits[OLDER]
    assert hub.requests[0] == ("GET", f"/api/models/{NAME}/revision/v1")


def test_without_a_digest_the_newest_is_fetched_and_said_to_be_unverified(hub: Hub, tmp_path: Path):
    hub.commits[OLDER] = {}
    code, error, words = fetch(tmp_path, hub.url)
    assert (code, error) == (0, "")
    assert files(tmp_path) == SERVED
    assert "not verified, as the version names no digest" in words


def test_a_mirror_that_tells_no_digests_is_verified_by_what_it_gave(hub: Hub, tmp_path: Path, digest: str):
    hub.tells_digests = False
    code, error, _ = fetch(tmp_path, hub.url, "d" * 64)
    assert code == 3
    assert error == f"the base model {NAME}: {hub.url} has digest {digest}, not {'d' * 64}"
    # That it is another model is no damage: nothing is fetched again to find the same.
    hub.requests.clear()
    assert fetch(tmp_path, hub.url, "d" * 64)[0] == 3
    assert not hub.gets(".safetensors")
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_damaged_file_is_removed_and_fetched_again(hub: Hub, tmp_path: Path, digest: str, is_pinned: bool):
    name = "model-00002-of-00002.safetensors"
    hub.damaged = {name}
    code, error, _ = fetch(tmp_path, hub.url, digest if is_pinned else "")
    assert (code, error) == (3, f"the base model {NAME}: {name} arrived damaged")
    assert name not in files(tmp_path)
    hub.damaged = set()
    hub.requests.clear()
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")
    assert hub.gets(".safetensors") == [f"/{NAME}/resolve/{NEWEST}/{name}"]


def test_a_download_that_breaks_off_is_taken_up_again(hub: Hub, tmp_path: Path, digest: str):
    name = "model-00001-of-00002.safetensors"
    hub.breaks = {name: 1}
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")
    assert len(hub.gets(name)) == 2
    assert files(tmp_path) == SERVED


def test_a_download_that_breaks_off_for_good_leaves_no_part(hub: Hub, tmp_path: Path, digest: str):
    name = "model-00001-of-00002.safetensors"
    hub.breaks = {name: 1000}
    code, error, _ = fetch(tmp_path, hub.url, digest)
    assert code == 3
    assert error.startswith(f"the base model {NAME}: {hub.url} ")
    assert "broke off" in error
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.breaks = {}
    hub.requests.clear()
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")
    assert [path for path in hub.gets() if "/resolve/" in path] == [f"/{NAME}/resolve/{NEWEST}/{name}"]


def test_what_a_killed_process_left_takes_no_room(hub: Hub, tmp_path: Path, digest: str):
    left = tmp_path / "base" / NAME / ".cache" / "huggingface" / "download" / "x.abc.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"part")
    (tmp_path / "base" / NAME / "model-00009.safetensors").write_bytes(b"of another commit")
    assert fetch(tmp_path, hub.url, digest)[:2] == (0, "")
    assert not left.exists()
    assert files(tmp_path) == SERVED


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((404, "RepoNotFound"), "has no such model, or shows it only to a token"),
        ((401, "RepoNotFound"), "which NEUROWEAVER_HUB_TOKEN_SECRET would name"),
        (
            (401, ""),
            "answers 401: it refuses the token that NEUROWEAVER_HUB_TOKEN_SECRET names, or asks for one",
        ),
        ((403, "GatedRepo"), "wants its terms accepted"),
        ((403, ""), "answers 403: it refuses the token that NEUROWEAVER_HUB_TOKEN_SECRET names"),
        ((500, ""), "answers 500"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line(
    hub: Hub, tmp_path: Path, refusal: tuple[int, str], words: str
):
    hub.refusal = refusal
    code, error, said = fetch(tmp_path, hub.url, "d" * 64, HF_TOKEN="hf_secret_of_this_test")
    assert code == 3
    assert error.startswith(f"the base model {NAME}: {hub.url} ")
    assert words in error
    assert "\n" not in error
    assert hub.authorizations == {"Bearer hf_secret_of_this_test"}
    assert "hf_secret" not in error + said


def test_a_revision_that_is_not_there_is_said(hub: Hub, tmp_path: Path):
    assert (
        fetch(tmp_path, hub.url, revision="v9")[1]
        == f"the base model {NAME}: {hub.url} has no revision v9 of it"
    )


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path):
    url = f"http://127.0.0.1:{free_port()}"
    code, error, _ = fetch(tmp_path, url)
    assert code == 3
    assert error == f"the base model {NAME}: {url} cannot be reached, or broke off (ConnectError)"


def test_a_page_that_is_none_of_a_hub_is_said(hub: Hub, tmp_path: Path):
    hub.html = True
    assert "does not answer as a hub does" in fetch(tmp_path, hub.url)[1]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: Hub, tmp_path: Path):
    hub.sizes = {
        "model-00001-of-00002.safetensors": 49 * 10**9,
        "model-00002-of-00002.safetensors": 49 * 10**9,
    }
    for number in range(10**3):
        hub.commits[NEWEST] = hub.commits[NEWEST] | {f"more-{number}.safetensors": b""}
        hub.sizes[f"more-{number}.safetensors"] = 49 * 10**9
    code, error, _ = fetch(tmp_path, hub.url)
    assert code == 3
    assert re.search(r"the pod's disk is full \(\d+ bytes are wanted, \d+ are free\)", error)
    assert not hub.gets(".safetensors")


def test_a_disk_that_fills_up_meanwhile_is_said():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "the pod's disk is full (No space left on device)" in hub_module._told(
        hub_module.Source(NAME), full
    )
    lost = hub_errors.LocalEntryNotFoundError("what was asked")
    lost.__cause__ = full
    assert hub_module._told(hub_module.Source(NAME), lost) == hub_module._told(hub_module.Source(NAME), full)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config.json": None}, "holds no config.json"),
        ({name: None for name in SERVED if name.endswith(".safetensors")}, "holds no weights as safetensors"),
    ],
)
def test_a_model_that_cannot_be_served_safely_is_refused(hub: Hub, tmp_path: Path, change, words: str):
    changed = SERVED | {"pytorch_model.bin": b"pickle"} | change
    hub.commits[NEWEST] = {name: content for name, content in changed.items() if content is not None}
    code, error, _ = fetch(tmp_path, hub.url)
    assert code == 3
    assert words in error
    assert not hub.gets(".bin")


def test_a_file_that_no_hub_gives_over_http_is_refused(hub: Hub, tmp_path: Path):
    hub.sizes = {"model-00001-of-00002.safetensors": 51 * 10**9}
    assert "hubs give no more than 50000000000 over plain HTTP" in fetch(tmp_path, hub.url)[1]
