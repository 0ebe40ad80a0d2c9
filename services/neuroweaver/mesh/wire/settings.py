"""The settings that every service has; a service's own are added in its `settings` module."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from neuroweaver.mesh.wire.environment import (
    Reading,
    SettingsError,
    Variable,
    choice,
    folder,
    port_number,
    read,
    scheme_of,
    seconds,
    seconds_above_0,
    switch,
    text,
    url,
    variable,
    whole,
)
from neuroweaver.mesh.wire.environment import address as host_and_port

PORTS: Final = {"registry": 50051, "trainer": 50052, "deployer": 50053, "experiment": 50054}
METRICS_PORT_OFFSET: Final = 1000


def postgresql_url(value: str) -> str:
    if scheme_of(value) not in {"postgresql", "postgres"}:
        raise ValueError("a URL that begins with postgresql://; without one, the database is a file")
    return value


def _database(reading: Reading) -> str:
    return f"sqlite:///{reading['home'] / reading['service']}.db"


def _home(_reading: Reading) -> Path:
    return Path.home() / ".neuroweaver"


def _backend(reading: Reading) -> str:
    return "kubernetes" if reading.environ.get("KUBERNETES_SERVICE_HOST", "").strip() else "local"


DEPLOYMENT_BACKEND: Final = Variable(
    "NEUROWEAVER_DEPLOYMENT_BACKEND",
    choice("local", "kubernetes"),
    _backend,
    "Where a deployment runs that names no backend: local or kubernetes.",
    shown_default="kubernetes inside a cluster, else local",
)
SERVING_PORT: Final = Variable(
    "NEUROWEAVER_SERVING_PORT",
    port_number,
    8100,
    "The local backend's endpoints are http://<host>:<port>/…; 0: any free port.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One service's settings. Port 0 stands for any free port, which only tests want."""

    service: str
    home: Path = variable(
        "NEUROWEAVER_HOME",
        folder,
        _home,
        shown_default="~/.neuroweaver",
        help="Where the embedded databases, the artifacts and the jobs lie.",
    )
    host: str = variable(
        "NEUROWEAVER_HOST", text, "127.0.0.1", help="The address that the services listen on."
    )
    port: int = variable(
        "NEUROWEAVER_{SERVICE}_PORT",
        port_number,
        lambda reading: PORTS.get(reading["service"], 0),
        shown_default=", ".join(f"{name} {number}" for name, number in PORTS.items()),
        help="The port of the service.",
    )
    metrics_port: int = variable(
        "NEUROWEAVER_{SERVICE}_METRICS_PORT",
        port_number,
        lambda reading: reading["port"] + METRICS_PORT_OFFSET if reading["port"] else 0,
        shown_default=f"the service's port + {METRICS_PORT_OFFSET}",
        help="Prometheus reads http://<host>:<port>/metrics.",
    )
    database_url: str = variable(
        "NEUROWEAVER_DATABASE_URL",
        postgresql_url,
        _database,
        shown_default="an SQLite file under NEUROWEAVER_HOME",
        is_secret=True,
        help="PostgreSQL, in which each service keeps a schema of its own.",
    )
    debug: bool = variable(
        "DEBUG",
        switch,
        default=False,
        help="The access log holds the requests, without secrets; the command line shows tracebacks.",
    )
    allow_insecure: bool = variable(
        "NEUROWEAVER_ALLOW_INSECURE",
        switch,
        default=False,
        help="Lets NEUROWEAVER_HOST be an address that other machines reach. There is no TLS yet.",
    )
    deadline_s: float = variable(
        "NEUROWEAVER_DEADLINE_S", seconds_above_0, 60.0, help="For a unary call that came without a deadline."
    )
    silence_s: float = variable(
        "NEUROWEAVER_SILENCE_S",
        seconds_above_0,
        60.0,
        help="How long a client may send nothing of an upload or read nothing of a download before it ends.",
    )
    streams_per_caller: int = variable(
        "NEUROWEAVER_STREAMS_PER_CALLER",
        whole(1, "streams"),
        10_000,
        help="How many streams, such as watches and downloads, one caller may have open at once, at 32 KiB "
        "each. All from one address are one caller.",
    )
    drain_s: float = variable(
        "NEUROWEAVER_DRAIN_S",
        seconds,
        20.0,
        help="How long calls under way may take after SIGTERM; below Kubernetes's 30 s before SIGKILL.",
    )
    log_format: str = variable(
        "NEUROWEAVER_LOG_FORMAT",
        choice("auto", "json", "human"),
        "auto",
        help="json, human, or auto: human on a terminal.",
    )
    otlp_endpoint: str = variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        url("http", "https"),
        "",
        is_secret=True,
        help="Where spans are sent, as OTLP over gRPC; empty: nowhere.",
    )
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Where the services listen, by name: host:port."""

    def __post_init__(self) -> None:
        if not (self.allow_insecure or is_loopback(self.host)):
            raise SettingsError(
                f"NEUROWEAVER_HOST={self.host} can be reached from other machines, without encryption or "
                "credentials. Use 127.0.0.1, or set NEUROWEAVER_ALLOW_INSECURE=true on a network you trust."
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Raises SettingsError naming the first variable that is wrong."""
        environ = os.environ if environ is None else environ
        given.setdefault("service", getattr(cls, "service", ""))
        return read(cls, environ, addresses={name: address(name, environ) for name in PORTS}, **given)


def address(service: str, environ: Mapping[str, str] | None = None) -> str:
    """Where `service` listens, for a caller. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    own = _OWN_PORT.read(environ, service=service)
    return str(ADDRESS.read(environ, service=service) or f"127.0.0.1:{own}")


_OWN_PORT: Final = Variable(
    "NEUROWEAVER_{SERVICE}_PORT", port_number, lambda reading: PORTS[reading["service"]], ""
)
ADDRESS: Final = Variable(
    "NEUROWEAVER_{SERVICE}_ADDRESS",
    host_and_port,
    "",
    "Where callers find the service, as host:port.",
    shown_default="127.0.0.1 and the service's port",
)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
