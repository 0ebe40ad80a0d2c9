"""Builds the binaries of control_plane.py from Debian's source package of Kubernetes: version 1.20.2, the last one of
which Debian 12 has the whole source.

    apt-get install golang-go etcd-server golang-github-modern-go-reflect2-dev patch
    python tests/deployer/live/build.py FOLDER

The deployer speaks to much younger API servers, so what it needs of them is added: autoscaling/v2 and policy/v1 as
copies of the beta versions that became them, and by a patch the fields `sleep` and `grpc` of handlers and
`unhealthyPodEvictionPolicy` of budgets, which are kept and have no effect, and the default of a Service's protocol. The
patch also makes the source work with Go 1.19. Takes about ten minutes on two cores, 1 GB in FOLDER and more in the
cache of Go.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

VERSION: Final = "1.20.2"

_LOG: Final = logging.getLogger("build")
_PACKAGE: Final = "k8s.io/kubernetes"
_PROGRAMS: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_OPENAPI: Final = "pkg/generated/openapi"
_REFLECT: Final = "github.com/modern-go/reflect2"
_WITHOUT_OPENAPI: Final = ("code-generator", "sample-apiserver", "sample-controller", "testdata")


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    subprocess.run([*map(str, command)], cwd=cwd, env=os.environ | environment, check=True)


def download(folder: Path) -> Path:
    """The source package of the machine's own sources, whether or not they list sources yet."""
    parts = folder / "apt"
    for name in ("sources", "lists/partial", "cache/archives/partial"):
        (parts / name).mkdir(parents=True, exist_ok=True)
    for file in Path("/etc/apt/sources.list.d").glob("*.sources"):
        told = re.sub(r"^Types:.*$", "Types: deb-src", file.read_text(), flags=re.MULTILINE)
        (parts / "sources" / file.name).write_text(told)
    options = [
        f"-oDir::Etc::sourceparts={parts / 'sources'}",
        "-oDir::Etc::sourcelist=/dev/null",
        f"-oDir::State::lists={parts / 'lists'}",
        f"-oDir::Cache={parts / 'cache'}",
    ]
    run("apt-get", "-q", *options, "update", cwd=folder)
    run("apt-get", "-q", *options, "source", "--download-only", "--tar-only", "kubernetes", cwd=folder)
    return next(folder.glob(f"kubernetes_*{VERSION}.orig.tar.gz"))


def unpack(archive: Path, root: Path) -> None:
    root.parent.mkdir(parents=True)
    with tarfile.open(archive) as source:
        source.extractall(root.parent, filter="data")
    (root.parent / f"kubernetes-{VERSION}").rename(root)


def promote(root: Path, group: str, beta: str, version: str) -> None:
    """Copies a version of a group of the API under the name that it got when it was stable."""
    for folder in (root / "staging/src/k8s.io/api" / group, root / "pkg/apis" / group):
        shutil.copytree(folder / beta, folder / version, ignore=shutil.ignore_patterns("*_test.go", "BUILD"))
        for file in (folder / version).iterdir():
            text = file.read_text()
            if version == "v1" and file.suffix == ".go":  # by that name the files know other groups' versions
                text = re.sub(r"\bv1\.", "xv1.", text)
                text = re.sub(r'^(\s*)(v1 )?("k8s\.io/(api/core|\S+)/v1")$', _named, text, flags=re.MULTILINE)
            file.write_text(text.replace(beta, version).replace(beta.capitalize(), version.capitalize()))


def _named(found: re.Match[str]) -> str:
    is_named = found[2] or found[4] == "api/core"
    return f"{found[1]}{'xv1 ' if is_named else ''}{found[3]}"


def add(root: Path) -> None:
    promote(root, "autoscaling", "v2beta2", "v2")
    promote(root, "policy", "v1beta1", "v1")
    run("patch", "-p1", "-i", Path(__file__).with_name(f"kubernetes-{VERSION}.patch").resolve(), cwd=root)
    # Below 1.0.2 it reads the maps of Go before 1.18.
    shutil.rmtree(root / "vendor" / _REFLECT)
    shutil.copytree(Path("/usr/share/gocode/src") / _REFLECT, root / "vendor" / _REFLECT)


def with_openapi(root: Path) -> list[str]:
    """The packages that ask for definitions, as Makefile.generated_files finds them."""
    asking = {
        file.parent.relative_to(root).as_posix()
        for folder in ("pkg", "cmd", "plugin", "staging")
        for file in (root / folder).rglob("*.go")
        if not file.name.endswith("_test.go") and "+k8s:openapi-gen=" in file.read_text()
    }
    return [
        f"{_PACKAGE}/{name.replace('staging/src/', 'vendor/')}"
        for name in sorted(asking)
        if not any(each in name for each in _WITHOUT_OPENAPI)
    ]


def compile_programs(root: Path, folder: Path) -> None:
    go = {"GOPATH": str(folder / "gopath"), "GO111MODULE": "off"}
    generator, programs = folder / "openapi-gen", folder / "bin"
    run("go", "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen", cwd=root, **go)
    run(
        generator,
        f"-i={','.join(with_openapi(root))}",
        f"-p={_PACKAGE}/{_OPENAPI}",
        "-O=zz_generated.openapi",
        "-h=hack/boilerplate/boilerplate.generatego.txt",
        f"-r={folder / 'violations'}",
        cwd=root,
        **go,
    )
    major, minor, _ = VERSION.split(".")
    told = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(
        f"-X {_PACKAGE}/vendor/{package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in told.items()
    )
    sources = [f"./cmd/{name}" for name in _PROGRAMS]
    run("go", "build", "-ldflags", flags, "-o", f"{programs}/", *sources, cwd=root, **go)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", type=Path, help="the source package's .orig.tar.gz, where it is at hand")
    told = parser.parse_args()
    folder: Path = told.folder.resolve()
    root = folder / "gopath/src" / _PACKAGE
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not root.exists():
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        unpack(told.source or download(folder), root)
        add(root)
    compile_programs(root, folder)
    _LOG.info("python tests/deployer/live/control_plane.py %s", folder)


if __name__ == "__main__":
    main()
