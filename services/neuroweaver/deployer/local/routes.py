"""What the deployer and the router of this machine tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from neuroweaver.deployer.domain.backend import Key, Redirect
from neuroweaver.deployer.routing.counts import Counts
from neuroweaver.mesh.server.http_limits import HttpLimits
from neuroweaver.mesh.wire.records import Records

RECORDS: Final = Records()
RECORDS.hook(Key, lambda key: [key.project, key.model_id, key.name], lambda parts: Key(*map(str, parts)))
RECORDS.hook(Counts, Counts.plain, Counts.of_plain)


@dataclass(frozen=True)
class Route:
    """A replica that is ready. url: without `/v1`."""

    replica_id: str
    revision: int
    url: str


@dataclass(frozen=True)
class Table:
    """One deployment. weights: by revision, of those that have a replica. held: revisions that keep their
    conversations while they cannot serve.

    is_expected: whether something will serve by itself before long. is_awaited: whether a request waits for
    it while nothing serves; it is started by that, where it sleeps.
    """

    resource_name: str
    key: Key
    routes: tuple[Route, ...] = ()
    weights: Mapping[int, float] = field(default_factory=dict)
    held: tuple[int, ...] = ()
    is_affine: bool = False
    is_expected: bool = False
    is_awaited: bool = False
    redirect: Redirect | None = None


@dataclass(frozen=True)
class Tables:
    """names: of all deployments that there are, also of those of which nothing is known yet, so that what
    the router knows of them holds. is_whole: there are no such.
    """

    names: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    is_whole: bool = True


@dataclass(frozen=True)
class Report:
    """What the router saw of one deployment since it started. calls: requests that asked for a replica.

    waiting: requests that wait for one. in_flight: requests that are with each replica. counts: by revision.
    """

    calls: int = 0
    waiting: int = 0
    in_flight: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[int, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class Reports:
    """By resource name."""

    deployments: Mapping[str, Report] = field(default_factory=dict)


@dataclass(frozen=True)
class Woken:
    """count: of requests so far that began to wait. names: of the deployments for which some wait now."""

    count: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """What the router's process is started with. host, port: of the front. control: the Unix socket at which
    the deployer reaches it, in the configuration's own folder. release: of the program.
    """

    host: str
    port: int
    wake_s: float
    drain_s: float
    release: str
    limits: HttpLimits = field(default_factory=HttpLimits)
    control: str = "control.sock"

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def endpoint(self, key: Key) -> str:
        """The base URL of a deployment's OpenAI-compatible interface."""
        return f"{self.address}/{key.project}/{key.model_id}/{key.name}/v1"


def read(file: Path) -> Config | None:
    """None if there is none that can be read."""
    try:
        return RECORDS.load(Config, file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
