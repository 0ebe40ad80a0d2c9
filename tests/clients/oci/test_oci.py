from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import grpc
import pytest

from e2e.processes import mesh
from neuroweaver.artifacts.content import TransferError
from neuroweaver.artifacts.transfer import artifact_of, download, upload
from neuroweaver.client import Client
from neuroweaver.oci import modelpack
from neuroweaver.oci.layout import Layout
from neuroweaver.oci.modelpack import layer_type
from neuroweaver.oci.oci import export_version, import_layout
from neuroweaver.v1 import common_pb2
from neuroweaver.v1 import registry_pb2 as pb

WEIGHTS = "adapter/adapter_model.safetensors"
A, B = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def addresses(tmp_path_factory) -> Iterator[list[str]]:
    """Two real Registries that know nothing of each other."""
    with (
        mesh(tmp_path_factory.mktemp("near"), "registry") as near,
        mesh(tmp_path_factory.mktemp("far"), "registry") as far,
    ):
        yield [near.addresses["registry"], far.addresses["registry"]]


@pytest.fixture
def near(addresses) -> Iterator[Client]:
    with Client({"registry": addresses[0]}) as client:
        yield client


@pytest.fixture
def far(addresses) -> Iterator[Client]:
    with Client({"registry": addresses[1]}) as client:
        yield client


@pytest.fixture
def name() -> str:
    """A model that no other test has."""
    return f"advisor-{os.urandom(6).hex()}"


@pytest.fixture(params=["folder", "tar"])
def output(request, tmp_path):
    """Where to: a folder, or a file that is a tar."""
    return tmp_path / ("layout" if request.param == "folder" else "layout.tar")


def weights(size: int = 1000) -> bytes:
    data = os.urandom(size)
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def written(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def created(
    client: Client, name: str, folder, version: str = "1.0.0", files=None, **fields
) -> pb.ModelVersion:
    files = {WEIGHTS: weights(), "README.md": b"# Advisor\n"} if files is None else files
    client.registry.RegisterModel(pb.RegisterModelRequest(model=pb.Model(model_id=name), allow_existing=True))
    sent = upload(client.registry, written(folder, files)) if files else []
    artifacts = map(artifact_of, sent)
    request = pb.CreateModelVersionRequest(model_id=name, version=version, artifacts=artifacts)
    config = fields.pop("config", {})
    request.MergeFrom(pb.CreateModelVersionRequest(**fields))
    if config:
        request.config.update(config)
    return client.registry.CreateModelVersion(request)


def moved(client: Client, version: pb.ModelVersion, *states: str) -> pb.ModelVersion:
    for state in states:
        version = client.registry.UpdateVersionState(
            pb.UpdateVersionStateRequest(
                model_id=version.model_id, version=version.version, state=f"VERSION_STATE_{state}"
            )
        )
    return version


RICH = {
    "description": "Retrained on March's calls: «naïve» 車.\nSecond line.",
    "config": {
        "lora_r": 16,
        "learning_rate": 5e-4,
        "deep": {"list": [1, "two", None, True, 0.1]},
        "none": None,
    },
    "tags": {"team": "service", "site/zone": "ü, ä"},
    "metrics": {
        "win_rate": pb.Metric(
            value=0.1 + 0.2,
            direction=pb.METRIC_DIRECTION_HIGHER_IS_BETTER,
            interval=common_pb2.Interval(lower=1 / 3, upper=0.7, confidence=0.95),
            samples=[0.1, -0.0, 1e-300, 2**0.5],
        ),
        "latency": pb.Metric(value=12.0, direction=pb.METRIC_DIRECTION_LOWER_IS_BETTER, unit="ms"),
        "plain": pb.Metric(),
    },
    "base": pb.BasePin(
        name="smollm2", model_digest=A, tokenizer_digest=B, chat_template_digest=A, context_length=2**40
    ),
    "lineage": pb.Lineage(
        training_job_id="job-1",
        dataset_digest=B,
        dataset_path="builtin:automotive",
        software_version="0.1.0",
        trace_id="c" * 32,
    ),
}


def rich(client: Client, name: str, folder, version: str = "1.4.0-rc.1+build.7", **more) -> pb.ModelVersion:
    files = {
        WEIGHTS: weights(2_500_000),
        "adapter/adapter_config.json": b'{"r": 16, "base_model_name_or_path": "smollm2"}',
        "adapter/copy.json": b'{"r": 16, "base_model_name_or_path": "smollm2"}',
        "training/feedback.jsonl": os.urandom(8).hex().encode(),
        "README.md": b"# Advisor\n",
        "LICENSE": b"",
    }
    return created(client, name, folder, version, files, **(RICH | more))


def travelling(version: pb.ModelVersion) -> pb.ModelVersion:
    """Without what belongs to one registry."""
    kept = pb.ModelVersion()
    kept.CopyFrom(version)
    for each in ("create_time", "update_time", "delete_time", "etag", "aliases"):
        kept.ClearField(each)
    return kept


def everything(client: Client) -> tuple[list[str], int]:
    """What a refused import must leave as it was."""
    events = client.registry.ListAuditEvents(pb.ListAuditEventsRequest(page_size=1000)).events
    return [model.model_id for model in client.models()], len(events)


def tree(path) -> dict[str, bytes]:
    """A layout's files, in a folder or a tar."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with tarfile.open(path) as opened:
        return {each.name: opened.extractfile(each).read() for each in opened}


def image_of(path, ref: str = "") -> tuple[dict, dict]:
    """Manifest and config, as another reader finds them."""
    files = tree(path)
    index = json.loads(files["index.json"])
    [entry] = [
        each
        for each in index["manifests"]
        if not ref or each["annotations"]["org.opencontainers.image.ref.name"] == ref
    ]
    manifest = json.loads(files["blobs/sha256/" + entry["digest"].removeprefix("sha256:")])
    config = json.loads(files["blobs/sha256/" + manifest["config"]["digest"].removeprefix("sha256:")])
    return manifest, config


@pytest.mark.parametrize("source", ["folder", "tar"])
def test_a_version_comes_back_equal_in_another_registry(near, far, name, tmp_path, source):
    made = rich(near, name, tmp_path / "files")
    output = tmp_path / ("layout" if source == "folder" else "layout.tar")

    export_version(near, made, output)
    imported = import_layout(far, output)

    assert travelling(imported) == travelling(made)
    assert travelling(far.version(name, made.version)) == travelling(made)
    download(far.registry, imported, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "files")


@pytest.mark.parametrize(
    ("state", "steps"),
    [
        ("TRAINED", ()),
        ("VALIDATED", ("VALIDATED",)),
        ("DEPLOYED", ("VALIDATED", "DEPLOYED")),
        ("DEPRECATED", ("DEPRECATED",)),
        ("ARCHIVED", ("ARCHIVED",)),
    ],
)
def test_a_version_comes_back_in_its_state(near, far, name, tmp_path, state, steps):
    made = moved(near, created(near, name, tmp_path / "files"), *steps)

    export_version(near, made, tmp_path / "layout")
    imported = import_layout(far, tmp_path / "layout")

    assert imported.state == pb.VersionState.Value(f"VERSION_STATE_{state}")
    assert travelling(imported) == travelling(made)


@pytest.mark.parametrize("steps", [(), ("ARCHIVED",), ("ARCHIVED", "DEPRECATED")])
def test_a_version_without_files_comes_back(near, far, name, tmp_path, steps):
    made = moved(near, created(near, name, tmp_path, files={}, description="to be made"), *steps)

    export_version(near, made, tmp_path / "layout.tar")

    assert travelling(import_layout(far, tmp_path / "layout.tar")) == travelling(made)


def test_a_child_comes_back_with_its_parent(near, far, name, tmp_path, output):
    rich(near, name, tmp_path / "parent", "1.0.0")
    child = rich(near, name, tmp_path / "child", "1.1.0", parent_version="1.0.0", config={"epochs": 4})
    assert child.config["learning_rate"] == 5e-4  # inherited
    export_version(near, near.version(name, "1.0.0"), output)
    export_version(near, child, output)

    with pytest.raises(TransferError, match=f"has the parent {name}@1.0.0, which is not here"):
        import_layout(far, output, ref="1.1.0")
    import_layout(far, output, ref="1.0.0")
    imported = import_layout(far, output, ref="1.1.0")

    assert travelling(imported) == travelling(child)
    orphan = import_layout(far, output, ref="1.1.0", version="2.0.0", without_parent=True)
    assert (orphan.version, orphan.parent_version, orphan.config) == ("2.0.0", "", child.config)


def test_a_child_whose_parent_is_another_one_here_is_refused(near, far, name, tmp_path):
    created(near, name, tmp_path / "parent", config={"lora_r": 16})
    child = created(near, name, tmp_path / "child", "1.1.0", parent_version="1.0.0")
    created(far, name, tmp_path / "other", config={"lora_r": 16, "epochs": 3})
    export_version(near, child, tmp_path / "layout")

    with pytest.raises(TransferError, match=r"would inherit from .*@1\.0\.0, which is another version here"):
        import_layout(far, tmp_path / "layout")


def test_the_same_bytes_come_out_every_time(near, far, name, tmp_path):
    made = rich(near, name, tmp_path / "files")

    digests = {export_version(near, made, tmp_path / each) for each in ("a", "b", "a.tar", "b.tar")}

    assert len(digests) == 1
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_order_in_which_versions_are_added_makes_no_difference(near, name, tmp_path):
    one, two = (rich(near, name, tmp_path / each, each) for each in ("1.0.0", "2.0.0"))

    for output, versions in (("a.tar", (one, two)), ("b.tar", (two, one)), ("c", (two, one, two))):
        for version in versions:
            export_version(near, version, tmp_path / output)

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert tree(tmp_path / "a.tar") == tree(tmp_path / "c")


# ModelPack: docs/spec.md, docs/annotations.md, schema/config-schema.json.

TEXT, TEXTS = (str,), (list, str)
DESCRIPTOR = dict.fromkeys(
    ("createdAt", "family", "name", "docURL", "sourceURL", "version", "revision", "vendor", "title", "description"), TEXT,
) | dict.fromkeys(("authors", "datasetsURL", "licenses"), TEXTS)  # fmt: skip
CONFIG = dict.fromkeys(("architecture", "format", "paramSize", "precision", "quantization"), TEXT) | {
    "transformerConfig": (dict,),
    "capabilities": (dict,),
}


def assert_fields(value, known):
    for key, found in value.items():
        kind, *inner = known[key]
        assert isinstance(found, kind), key
        assert all(isinstance(each, inner[0]) for each in found) if inner else True, key


def test_the_manifest_is_as_modelpack_says(near, name, tmp_path, output):
    made = rich(near, name, tmp_path / "files")

    digest = export_version(near, made, output)

    files = tree(output)
    index = json.loads(files["index.json"])
    [entry] = index["manifests"]
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    assert entry["digest"] == digest
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == made.version
    for path, content in files.items():
        if path.startswith("blobs/"):
            assert path == f"blobs/sha256/{digest_of(content)}"

    manifest, config = image_of(output)
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    for each in (entry, manifest["config"], *manifest["layers"]):
        assert each["size"] == len(files["blobs/sha256/" + each["digest"].removeprefix("sha256:")])
    layers = {each["annotations"]["org.cncf.model.filepath"]: each for each in manifest["layers"]}
    assert {path: each["mediaType"].split(".model.")[1] for path, each in layers.items()} == {
        WEIGHTS: "weight.v1.raw",
        "adapter/adapter_config.json": "weight.config.v1.raw",
        "adapter/copy.json": "weight.config.v1.raw",
        "training/feedback.jsonl": "dataset.v1.raw",
        "README.md": "doc.v1.raw",
        "LICENSE": "doc.v1.raw",
        "neuroweaver/version.json": "doc.v1.raw",
    }
    for artifact in made.artifacts:
        assert layers[artifact.path]["digest"] == f"sha256:{artifact.digest}"

    assert set(config) == {"descriptor", "config", "modelfs"}
    assert_fields(config["descriptor"], DESCRIPTOR)
    assert_fields(config["config"], CONFIG)
    assert config["descriptor"]["name"] == name  # its validator asks for one
    assert config["descriptor"]["version"] == made.version
    assert datetime.fromisoformat(config["descriptor"]["createdAt"]).tzinfo is not None
    assert config["config"] == {"format": "safetensors"}
    assert config["modelfs"] == {"type": "layers", "diffIds": [each["digest"] for each in manifest["layers"]]}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.safetensors", "weight"),
        ("tokenizer.model", "weight.config"),
        ("vocab.txt", "weight.config"),
        ("chat_template.jinja", "weight.config"),
        ("notes.txt", "doc"),
        ("curve.svg", "doc"),
        ("NOTICE", "doc"),
        ("data/train.CSV", "dataset"),
        ("run.py", "code"),
    ],
)
def test_a_layers_type_goes_by_the_kind_of_its_file(path, kind):
    assert layer_type(path) == f"application/vnd.cncf.model.{kind}.v1.raw"


def test_a_layout_gets_further_versions_and_holds_common_files_once(near, far, name, tmp_path, output):
    shared = weights(100_000)
    for version in ("1.0.0", "1.1.0"):
        files = {WEIGHTS: shared, "README.md": f"# {version}".encode()}
        export_version(near, created(near, name, tmp_path / version, version, files), output)

    assert sum(len(content) for content in tree(output).values()) < 120_000
    with pytest.raises(TransferError, match=r"holds several versions, name one of 1\.0\.0, 1\.1\.0"):
        import_layout(far, output)
    with pytest.raises(TransferError, match=r"does not hold one 3\.0\.0, but 1\.0\.0, 1\.1\.0"):
        import_layout(far, output, ref="3.0.0")
    assert import_layout(far, output, ref="1.0.0").version == "1.0.0"
    assert import_layout(far, output, version="1.1.0").version == "1.1.0"


def test_a_version_that_is_there_already_changes_nothing(near, name, tmp_path, output):
    made = created(near, name, tmp_path / "files")
    export_version(near, made, output)
    before = tree(output)

    export_version(near, made, output)

    assert tree(output) == before


def test_another_version_of_the_same_name_is_not_replaced(near, name, tmp_path, output):
    export_version(near, created(near, name, tmp_path / "files"), output)
    before = tree(output)

    with pytest.raises(TransferError, match=r"already holds another 1\.0\.0"):
        export_version(near, created(near, f"{name}-2", tmp_path / "files"), output)

    assert tree(output) == before


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("full", "is not an OCI image layout"),
        ("full/kept", "is a file; the name of an archive ends in .tar"),
        ("text.tar", "is not a tar, or is damaged"),
        ("other.tar", "is not an OCI image layout"),
        ("folder.tar", "is a folder"),
        ("link", "is a symbolic link"),
        ("link.tar", "is a symbolic link"),
    ],
)
def test_what_is_no_layout_is_not_written_to(near, name, tmp_path, place, problem):
    written(tmp_path, {"full/kept": b"kept", "text.tar": b"x" * 2000, "folder.tar/a": b"a"})
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "full" / "kept", "kept")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "link.tar").symlink_to(tmp_path / "other.tar")
    before = tree(tmp_path)

    with pytest.raises(TransferError, match=problem):
        export_version(near, created(near, name, tmp_path / "files"), tmp_path / place)

    shutil.rmtree(tmp_path / "files")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("link", ["blobs", "blobs/sha256", "index.json"])
def test_a_layout_is_not_written_through_a_link(near, name, tmp_path, link):
    export_version(near, created(near, name, tmp_path / "files"), tmp_path / "layout")
    (tmp_path / "layout" / link).rename(tmp_path / "elsewhere")
    (tmp_path / "layout" / link).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(TransferError, match="is a symbolic link"):
        export_version(near, created(near, name, tmp_path / "more", "2.0.0"), tmp_path / "layout")


def test_an_interrupted_export_to_a_folder_goes_on(near, far, name, tmp_path):
    content = weights(5_000_000)
    made = created(near, name, tmp_path / "files", files={WEIGHTS: content, "README.md": b"x"})
    layout = tmp_path / "layout"

    def stopped(path, done, _total):
        if path == WEIGHTS and done > 3_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_version(near, made, layout, on_progress=stopped)
    assert not (layout / "index.json").exists()
    done = []
    export_version(
        near, made, layout, on_progress=lambda path, now, _: done.append(now) if path == WEIGHTS else None
    )

    assert done[0] > 2_000_000
    assert travelling(import_layout(far, layout)) == travelling(made)


def test_an_interrupted_export_to_a_tar_leaves_what_was_there(near, name, tmp_path):
    file = tmp_path / "layout.tar"
    export_version(near, created(near, name, tmp_path / "files"), file)
    before = file.read_bytes()

    def stopped(*_told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_version(near, created(near, name, tmp_path / "more", "2.0.0"), file, on_progress=stopped)

    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_damaged_blob_of_the_layout_is_replaced_or_refused(near, far, name, tmp_path, kind):
    made = created(near, name, tmp_path / "files")
    blob = f"blobs/sha256/{made.artifacts[1].digest}"
    export_version(near, made, tmp_path / "layout")
    (tmp_path / "layout" / blob).write_bytes(b"\0" * made.artifacts[1].size_bytes)
    if kind == "folder":
        export_version(near, made, tmp_path / "layout")
        assert travelling(import_layout(far, tmp_path / "layout")) == travelling(made)
        return
    packed(tmp_path / "layout.tar", tree(tmp_path / "layout").items())
    with pytest.raises(TransferError, match=f"{blob}: is damaged"):
        export_version(near, created(near, name, tmp_path / "more", "2.0.0"), tmp_path / "layout.tar")


def test_a_file_where_an_export_keeps_its_own_is_refused(near, name, tmp_path):
    made = created(near, name, tmp_path / "files", files={"neuroweaver/version.json": b"{}"})

    with pytest.raises(TransferError, match="has a file in neuroweaver/"):
        export_version(near, made, tmp_path / "layout")


def test_importing_again_gives_the_same_version(near, far, name, tmp_path, output):
    made = rich(near, name, tmp_path / "files")
    export_version(near, made, output)

    first = import_layout(far, output)
    before = everything(far)
    again = import_layout(far, output)

    assert again == first
    assert everything(far) == before


def test_a_version_is_recognised_where_it_comes_from(near, name, tmp_path, output):
    """No answer is kept there for the import: the content tells."""
    made = rich(near, name, tmp_path / "files")
    export_version(near, made, output)
    before = everything(near)

    assert import_layout(near, output) == near.version(name, made.version)
    assert everything(near) == before


def test_an_import_that_stopped_before_the_last_state_goes_on(near, far, name, tmp_path, monkeypatch):
    made = moved(near, created(near, name, tmp_path / "files"), "VALIDATED", "DEPLOYED")
    export_version(near, made, tmp_path / "layout")

    def stopped(_request):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(far.registry, "UpdateVersionState", stopped)
        with pytest.raises(KeyboardInterrupt):
            import_layout(far, tmp_path / "layout")
    assert far.version(name, "1.0.0").state == pb.VERSION_STATE_VALIDATED

    assert travelling(import_layout(far, tmp_path / "layout")) == travelling(made)


@pytest.mark.parametrize("change", [{"description": "other"}, {"tags": {"a": "b"}}, {"config": {"a": 1}}])
def test_a_taken_version_with_other_content_is_the_registrys_to_refuse(near, far, name, tmp_path, change):
    export_version(near, created(near, name, tmp_path / "files"), tmp_path / "layout")
    there = created(far, name, tmp_path / "files", **change)

    with pytest.raises(grpc.RpcError) as error:
        import_layout(far, tmp_path / "layout")

    assert error.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert far.version(name, "1.0.0") == there


def test_a_version_is_imported_under_another_name(near, name, tmp_path, output):
    made = rich(near, name, tmp_path / "files")
    export_version(near, made, output)

    imported = import_layout(near, output, model_id=f"{name}-fork", version="7.0.0")

    expected = travelling(made)
    expected.model_id, expected.version = f"{name}-fork", "7.0.0"
    assert travelling(imported) == expected


@dataclass
class Forge:
    """A layout of another tool's making, or of somebody who means harm."""

    name: str
    blobs: dict[str, bytes] = field(default_factory=dict)
    layers: list[dict] = field(default_factory=list)
    descriptor: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    manifest: dict = field(default_factory=dict)
    """Laid over the manifest."""
    entry: dict = field(default_factory=dict)
    """Laid over the manifest's descriptor in the index."""
    ref: str = "1.0.0"

    def blob(self, content: bytes, media_type: str, **more) -> dict:
        self.blobs[digest_of(content)] = content
        return {
            "mediaType": media_type,
            "digest": f"sha256:{digest_of(content)}",
            "size": len(content),
        } | more

    def add(self, path, content: bytes, kind: str = "weight.config.v1.raw", **more) -> dict:
        annotations = {"org.cncf.model.filepath": path} if path is not None else {}
        layer = self.blob(content, f"application/vnd.cncf.model.{kind}", annotations=annotations) | more
        self.layers.append(layer)
        return layer

    def files(self) -> dict[str, bytes]:
        config = {
            "descriptor": {"name": self.name, "version": "1.0.0"} | self.descriptor,
            "config": self.config,
            "modelfs": {"type": "layers", "diffIds": [each["digest"] for each in self.layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": self.blob(json.dumps(config).encode(), "application/vnd.cncf.model.config.v1+json"),
            "layers": self.layers,
        } | self.manifest
        entry = self.blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": self.ref}
        index = {"schemaVersion": 2, "manifests": [entry | self.entry]}
        return {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps(index).encode(),
            **{f"blobs/sha256/{digest}": content for digest, content in self.blobs.items()},
        }

    def put(self, output):
        return laid(output, self.files())


def laid(output, files):
    """The files as a folder, or as a tar."""
    return packed(output, files.items()) if output.suffix == ".tar" else written(output, files)


def packed(file, entries):
    """A tar of pairs of a name, or of a whole header, and a content."""
    file.write_bytes(tar_of(*entries))
    return file


def tar_of(*entries, mode="w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for each, content in entries:
            info = each if isinstance(each, tarfile.TarInfo) else tarfile.TarInfo(each)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def forge(name) -> Forge:
    return Forge(name)


def test_a_layout_of_another_tool_is_imported(far, forge, name, output):
    content = weights()
    forge.add("model-00001.safetensors", content, "weight.v1.raw")
    forge.add("config.json", b'{"hidden_size": 576}')
    forge.add(None, b"MIT", "doc.v1.raw", annotations={"org.opencontainers.image.title": "LICENSE"})
    forge.descriptor = {
        "version": "3.1.0",
        "description": "A model.",
        "family": "xyz3",
        "vendor": "XYZ Corp.",
        "licenses": ["Apache-2.0", "MIT"],
        "createdAt": "2026-01-01T00:00:00Z",
        "docURL": "https://example.org/" + "x" * 300,
    }
    forge.config = {
        "architecture": "transformer",
        "precision": "bf16",
        "capabilities": {"inputTypes": ["text"]},
    }

    imported = import_layout(far, forge.put(output))

    assert (imported.model_id, imported.version, imported.description) == (name, "3.1.0", "A model.")
    assert imported.state == pb.VERSION_STATE_TRAINED
    assert imported.tags == {"family": "xyz3", "vendor": "XYZ Corp.", "licenses": "Apache-2.0, MIT"}
    modelpack_config = dict(imported.config["modelpack"])
    assert dict(modelpack_config["config"])["precision"] == "bf16"
    assert dict(modelpack_config["descriptor"])["docURL"] == forge.descriptor["docURL"]
    assert {each.path: each.digest for each in imported.artifacts} == {
        "model-00001.safetensors": digest_of(content),
        "config.json": digest_of(b'{"hidden_size": 576}'),
        "LICENSE": digest_of(b"MIT"),
    }
    assert import_layout(far, output) == imported


def test_an_imported_layout_of_another_tool_comes_out_and_back_again(near, far, forge, tmp_path):
    forge.add("model.safetensors", weights(), "weight.v1.raw")
    imported = import_layout(near, forge.put(tmp_path / "theirs"))

    export_version(near, imported, tmp_path / "ours.tar")

    assert travelling(import_layout(far, tmp_path / "ours.tar")) == travelling(imported)


def test_tar_layers_are_read_where_they_lie(far, forge, output, tmp_path):
    files = {"model.safetensors": weights(3_000_000), "tokenizer/tokenizer.json": b"{}"}
    layer = tar_of((header("tokenizer", tarfile.DIRTYPE), b""), *files.items())
    forge.add("whatever", layer, "weight.v1.tar")

    imported = import_layout(far, forge.put(output))

    assert {each.path: each.digest for each in imported.artifacts} == {
        path: digest_of(content) for path, content in files.items()
    }
    download(far.registry, imported, tmp_path / "down")
    assert tree(tmp_path / "down") == files


def test_the_name_in_the_layout_is_the_version_where_the_descriptor_has_none(far, forge, tmp_path):
    forge.add("a.json", b"{}")
    forge.descriptor, forge.ref = {"version": "3.1"}, "2.5.0"

    assert import_layout(far, forge.put(tmp_path / "layout")).version == "2.5.0"


@pytest.mark.parametrize(
    ("descriptor", "ref", "problem"),
    [
        ({"version": "3.1"}, "latest", "says latest, which is not a semantic version"),
        ({"version": ""}, "", "says no version, which is not a semantic version"),
        ({"name": ""}, "1.0.0", "names no model"),
        ({"name": "Org/Model-7B"}, "1.0.0", "model_id"),
    ],
)
def test_what_a_layout_does_not_say_is_asked_for(far, forge, tmp_path, name, descriptor, ref, problem):
    forge.add("a.json", b"{}")
    forge.descriptor, forge.ref = descriptor, ref
    forge.put(tmp_path / "layout")
    before = everything(far)

    with pytest.raises((TransferError, grpc.RpcError), match=problem):
        import_layout(far, tmp_path / "layout")

    assert everything(far) == before
    assert import_layout(far, tmp_path / "layout", model_id=name, version="1.0.0").model_id == name


def test_a_layout_with_a_container_image_beside_the_model_is_taken(far, forge, tmp_path):
    forge.add("a.json", b"{}")
    files = forge.files()
    index = json.loads(files["index.json"])
    other = forge.blob(b'{"schemaVersion": 2}', "application/vnd.oci.image.manifest.v1+json")
    index["manifests"] += [other, {**other, "mediaType": "application/vnd.oci.image.index.v1+json"}]
    files = forge.files() | {"index.json": json.dumps(index).encode()}

    assert import_layout(far, written(tmp_path / "layout", files)).version == "1.0.0"


def refused(client: Client, path, problem: str, **more) -> TransferError:
    """Nothing of it reached the registry."""
    before = everything(client)
    with pytest.raises(TransferError, match=problem) as error:
        import_layout(client, path, **more)
    assert everything(client) == before
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("../../etc/passwd", "outside the version's folder"),
        ("/etc/passwd", "outside the version's folder"),
        ("a/../../b.json", "outside the version's folder"),
        ("..\\b.json", "backslash"),
        ("C:\\b.json", "backslash"),
        (".ssh/authorized_keys", "is not a path for a version's file"),
        ("a\n.json", "is not a path for a version's file"),
        ("", "names no file"),
        (None, "names no file"),
    ],
)
def test_a_layer_that_names_a_file_elsewhere_is_refused(far, forge, output, path, problem):
    forge.add("a.json", b"{}")
    layer = forge.add(path, b"[]")

    error = refused(far, forge.put(output), problem)

    assert error.entry == (path or layer["digest"])


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("weight.v1.tar+gzip", "is a compressed layer"),
        ("weight.v1.tar+zstd", "is a compressed layer"),
        ("doc.v1.raw+gzip", "is a compressed layer"),
        ("weight.v2.raw", r"has the unknown media type application/vnd\.cncf\.model\.weight\.v2\.raw"),
        ("weight.v1.gguf", "has the unknown media type"),
    ],
)
def test_a_layer_of_a_kind_that_is_not_taken_is_refused(far, forge, output, kind, problem):
    layer = forge.add("a.json", b"{}", kind)

    assert refused(far, forge.put(output), problem).entry == layer["digest"]


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([(header("a.json", tarfile.SYMTYPE, "/etc/passwd"), b"")], "a.json: is a symbolic link"),
        ([("b.json", b"{}"), (header("a.json", tarfile.LNKTYPE, "b.json"), b"")], "a.json: is a hard link"),
        ([(header("a.json", tarfile.CHRTYPE), b"")], "a.json: is a device file"),
        ([("../a.json", b"{}")], "is not a name that is taken"),
        ([("/a.json", b"{}")], "is not a name that is taken"),
        ([("a.json", b"{}"), ("a.json", b"[]")], "a.json: occurs twice"),
        ([("ok.json", b"{}")], "ok.json: occurs twice"),
        ([(".hidden", b"{}")], "is not a path for a version's file"),
        ([("neuroweaver/version.json", b"{}")], "only taken as a layer of its own"),
    ],
)
def test_a_tar_layer_is_looked_at_like_the_archive_itself(far, forge, output, entries, problem):
    forge.add("ok.json", b"{}")
    forge.add("layer.tar", tar_of(*entries), "weight.v1.tar")

    refused(far, forge.put(output), problem)


def test_a_tar_layer_that_is_compressed_all_the_same_is_refused(far, forge, output):
    layer = tar_of(("a.json", os.urandom(2000)), mode="w:gz")
    forge.add("layer.tar", layer, "weight.v1.tar")

    refused(far, forge.put(output), "is compressed with gzip")


def test_two_layers_of_one_path_are_refused(far, forge, output):
    forge.add("a.json", b"{}")
    forge.add("a.json", b"[]")

    assert refused(far, forge.put(output), "occurs twice").entry == "a.json"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (header("blobs/sha256/link", tarfile.SYMTYPE, "/etc/passwd"), "is a symbolic link"),
        (header("blobs/sha256/link", tarfile.LNKTYPE, "index.json"), "is a hard link"),
        (header("dev", tarfile.BLKTYPE), "is a device file"),
        (header("pipe", tarfile.FIFOTYPE), "is a named pipe"),
        (tarfile.TarInfo("../outside"), "is not a name that is taken"),
        (tarfile.TarInfo("/outside"), "is not a name that is taken"),
        (tarfile.TarInfo("./index.json"), "index.json: occurs twice"),
    ],
)
def test_an_archive_with_something_else_than_files_is_refused(far, forge, tmp_path, entry, problem):
    forge.add("a.json", b"{}")

    file = packed(tmp_path / "layout.tar", [*forge.files().items(), (entry, b"")])

    refused(far, file, problem)


def test_an_archive_with_too_many_entries_is_refused(far, forge, tmp_path):
    many = [(f"blobs/{number}", b"") for number in range(20_001)]

    refused(far, packed(tmp_path / "layout.tar", [*forge.files().items(), *many]), "more than 20000 entries")


@pytest.mark.parametrize("link", ["oci-layout", "index.json", "blobs", "blob"])
def test_a_folder_with_a_link_is_refused(far, forge, tmp_path, link):
    layer = forge.add("a.json", b"{}")
    folder = forge.put(tmp_path / "layout")
    target = folder / (link if link != "blob" else "blobs/sha256/" + layer["digest"].removeprefix("sha256:"))
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")

    assert refused(far, folder, "is a symbolic link").entry == str(target)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_blob_of_another_size_than_its_descriptor_says_is_refused(far, forge, output, more):
    layer = forge.add("a.json", b"{}")
    layer["size"] += more

    assert refused(far, forge.put(output), "has 2 bytes, yet its descriptor says").entry == layer["digest"]


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_blob_with_another_digest_is_refused(far, forge, output, which):
    layer = forge.add("a.json", b"{}")
    files = forge.files()
    manifest, entry = json.loads(files["index.json"])["manifests"][0], None
    body = json.loads(files["blobs/sha256/" + manifest["digest"].removeprefix("sha256:")])
    entry = {"layer": layer, "config": body["config"], "manifest": manifest}[which]
    path = "blobs/sha256/" + entry["digest"].removeprefix("sha256:")
    files[path] = files[path][:-1] + b" "

    error = refused(far, laid(output, files), "is damaged: its bytes have another digest")

    assert error.entry == entry["digest"]


def test_a_missing_blob_is_told(far, forge, output):
    layer = forge.add("a.json", b"{}")
    del forge.blobs[layer["digest"].removeprefix("sha256:")]

    assert refused(far, forge.put(output), "is missing").entry == layer["digest"]


@pytest.mark.parametrize("which", ["index.json", "oci-layout", "manifest", "config"])
def test_a_document_that_is_too_large_is_not_read(far, forge, output, which):
    forge.add("a.json", b"{}")
    padding = "x" * (4 * 1024 * 1024)
    if which == "manifest":
        forge.manifest = {"annotations": {"padding": padding}}
    if which == "config":
        forge.descriptor = {"title": padding}
    files = forge.files()
    if which in files:
        files[which] += b" " * len(padding)

    refused(far, laid(output, files), "bytes, more than 4194304")


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not an object"),
        (b'{"manifests": [], "manifests": []}', "is not JSON with unique names"),
        (b'{"manifests": NaN}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"manifests": {}}', "manifests: is not a list"),
        (b'{"manifests": [1]}', r"manifests\[0\]: is not an object"),
        (b'{"manifests": []}', "has no ModelPack model"),
        (b"\xff", "is not JSON"),
    ],
    ids=["cut", "list", "twice", "nan", "deep", "object", "number", "empty", "bytes"],
)
def test_an_index_that_is_none_is_refused(far, forge, output, index, problem):
    files = forge.files() | {"index.json": index}

    refused(far, laid(output, files), problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "sha512:" + "0" * 128}, "the only digest that is taken"),
        ({"digest": "sha256:../../../etc/passwd"}, "is not a SHA-256"),
        ({"digest": f"sha256:{A}\n"}, "is not a SHA-256"),
        ({"digest": None}, "is not a text"),
        ({"size": -1}, "is negative"),
        ({"size": True}, "is not a whole number"),
        ({"size": "2"}, "is not a whole number"),
        ({"annotations": None}, "names no file"),
        ({"annotations": []}, "is not an object"),
        ({"annotations": {"org.cncf.model.filepath": 1}}, "is not a text"),
        ({"mediaType": None}, "is not a text"),
    ],
)
def test_a_descriptor_that_is_none_is_refused(far, forge, tmp_path, changes, problem):
    forge.add("a.json", b"{}", **changes)

    refused(far, forge.put(tmp_path / "layout"), problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schemaVersion": 1}, "is not a ModelPack manifest"),
        ({"artifactType": "application/vnd.oci.empty.v1+json"}, "has no ModelPack model"),
        ({"layers": None}, "layers: is not a list"),
        ({"config": {}}, r"config\.digest: is not a text"),
        (
            {"config": {"mediaType": "application/x", "digest": f"sha256:{A}", "size": 1}},
            "config: has the unknown media type application/x",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused(far, forge, tmp_path, changes, problem):
    forge.add("a.json", b"{}")
    forge.manifest = changes

    refused(far, forge.put(tmp_path / "layout"), problem)


@pytest.mark.parametrize(
    ("place", "content", "problem"),
    [
        ("a.txt", b"x" * 2000, "is not a tar"),
        ("a.tar", tar_of(("a", b"a")), "is not an OCI image layout"),
        ("folder/a", b"", "is not an OCI image layout"),
        ("folder/oci-layout", b'{"imageLayoutVersion": "2.0.0"}', "is not of version 1.0.0"),
    ],
)
def test_what_is_no_layout_is_refused(far, tmp_path, place, content, problem):
    written(tmp_path, {place: content})

    refused(far, tmp_path / place.split("/")[0], problem)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ("{", "is not JSON"),
        ('{"model_id": 1}', "is not understood"),
        ('{"surprise": 1}', "is not understood"),
        ('{"metrics": []}', "is not understood"),
        ('{"config": "x"}', "is not understood"),
        ('{"metrics": {"a": {"value": ' + "9" * 400 + "}}}", "is not understood"),
        ('{"config": ' + '{"a": ' * 2000 + "1" + "}" * 2001, "is not understood|is not JSON"),
        ('{"artifacts": [{"path": "a.json", "digest": "' + A + '", "size_bytes": 2}]}', "names other files"),
        ("{}", "names other files"),
    ],
    ids=["cut", "kind", "unknown", "list", "text", "infinite", "deep", "other file", "no files"],
)
def test_what_a_version_says_of_itself_is_held_against_the_layers(far, forge, tmp_path, told, problem):
    forge.add("a.json", b"{}")
    forge.add("neuroweaver/version.json", told.encode(), "doc.v1.raw")

    refused(far, forge.put(tmp_path / "layout"), problem)


@pytest.mark.parametrize(
    ("path", "content", "problem"),
    [
        (
            "model.safetensors",
            pickle.dumps({"a": 1}, protocol=4),
            r"model\.safetensors: is refused: .*a pickle",
        ),
        ("model.safetensors", b"GGUF" + b"\0" * 60, r"model\.safetensors: is refused: .*a GGUF file"),
        ("model.gguf", b"GGUF" + b"\0" * 60, r"model\.gguf: is refused: .*of a type that is not accepted"),
        (
            "pytorch_model.bin",
            b"PK\x03\x04",
            r"pytorch_model\.bin: is refused: .*of a type that is not accepted",
        ),
    ],
    ids=["a pickle", "gguf as safetensors", "gguf", "a zip"],
)
def test_what_the_registry_does_not_take_is_told_with_its_path(
    far, forge, output, name, path, content, problem
):
    forge.add(path, content, "weight.v1.raw")

    with pytest.raises(TransferError, match=problem):
        import_layout(far, forge.put(output))

    assert not list(far.versions(name))


def test_a_layout_is_read_without_being_unpacked(far, forge, tmp_path):
    forge.add("model.safetensors", weights(2_000_000), "weight.v1.raw")
    file = forge.put(tmp_path / "layout.tar")

    image = modelpack.read(Layout.of(file), Layout.of(file).manifests()[0])
    import_layout(far, file)

    assert {content.file for content in image.files.values()} == {file}
    assert [each.name for each in tmp_path.iterdir()] == ["layout.tar"]
