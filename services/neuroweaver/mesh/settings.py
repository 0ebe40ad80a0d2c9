"""What a process is told by its environment, checked once at the start."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

PORTS: Final = {"registry": 50051, "trainer": 50052, "deployer": 50053, "experiment": 50054}
METRICS_PORT_OFFSET: Final = 1000
SERVING_PORT: Final = 8100
EXPERIMENT_MEMORY_MIB: Final = 1024
BACKENDS: Final = ("local", "kubernetes")
LOG_FORMATS: Final = ("auto", "json", "human")

_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO: Final = frozenset({"", "0", "false", "no", "off"})

T = TypeVar("T")


class SettingsError(Exception):
    """A variable holds what cannot be used. The message names the variable and what it may hold."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One service's settings. Port 0 stands for any free port, which only tests want."""

    service: str
    home: Path
    """Where the embedded database and the artifacts live."""
    host: str = "127.0.0.1"
    port: int
    metrics_port: int
    """Prometheus reads http://<host>:<metrics_port>/metrics."""
    database_url: str
    artifacts_url: str = ""
    """Where the files of versions lie: file:///folder, s3://bucket/prefix, gs://…; empty: below `home`."""
    debug: bool = False
    """The access log holds the requests themselves, secret-looking fields left out."""
    allow_insecure: bool = False
    """There is no TLS yet, so an address that other machines reach must be asked for by name."""
    deadline_s: float = 60.0
    """For a unary call that came without a deadline."""
    drain_s: float = 20.0
    """How long calls under way may take after SIGTERM; below Kubernetes's 30 s before SIGKILL."""
    log_format: str = "auto"
    otlp_endpoint: str = ""
    """Spans are exported there; empty: nowhere."""
    audit_key_file: Path | None = None
    """The Registry's private key for heads of the audit chain; None: one of its own in `home`."""
    webhook_private: bool = False
    """Webhooks may point into private networks."""
    deployment_backend: str = "local"
    """Where the Deployer runs what names no backend: local, or kubernetes."""
    serving_port: int = SERVING_PORT
    """The local backend's endpoints are http://<host>:<serving_port>/…; 0: any free port."""
    experiment_memory_mib: int = EXPERIMENT_MEMORY_MIB
    """For what the Experiment service knows of units, in all experiments; those used longest ago leave."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Where the other services listen, by name: host:port."""

    def __post_init__(self) -> None:
        if not (self.allow_insecure or is_loopback(self.host)):
            raise SettingsError(
                f"NEUROWEAVER_HOST={self.host} can be reached from other machines, without encryption or "
                "credentials. Use 127.0.0.1, or set NEUROWEAVER_ALLOW_INSECURE=true on a network you trust."
            )

    @classmethod
    def from_environment(cls, service: str, environ: Mapping[str, str] | None = None) -> Settings:
        """Raises SettingsError naming the first variable that is wrong."""
        read = _Reader(os.environ if environ is None else environ)
        home = read.home()
        port = read.number(f"NEUROWEAVER_{service.upper()}_PORT", PORTS.get(service, 0), _port)
        metrics_default = port + METRICS_PORT_OFFSET if port else 0
        return cls(
            service=service,
            home=home,
            host=read.text("NEUROWEAVER_HOST", "127.0.0.1"),
            port=port,
            metrics_port=read.number(f"NEUROWEAVER_{service.upper()}_METRICS_PORT", metrics_default, _port),
            database_url=read.database_url(home, service),
            artifacts_url=read.artifacts_url(),
            debug=read.switch("DEBUG"),
            allow_insecure=read.switch("NEUROWEAVER_ALLOW_INSECURE"),
            deadline_s=read.number("NEUROWEAVER_DEADLINE_S", 60.0, _positive),
            drain_s=read.number("NEUROWEAVER_DRAIN_S", 20.0, _not_negative),
            log_format=read.choice("NEUROWEAVER_LOG_FORMAT", LOG_FORMATS),
            otlp_endpoint=read.url("OTEL_EXPORTER_OTLP_ENDPOINT", ("http", "https")),
            audit_key_file=read.file("NEUROWEAVER_AUDIT_KEY_FILE"),
            webhook_private=read.switch("NEUROWEAVER_WEBHOOK_PRIVATE"),
            deployment_backend=read.deployment_backend(),
            serving_port=read.number("NEUROWEAVER_SERVING_PORT", SERVING_PORT, _port),
            experiment_memory_mib=read.number(
                "NEUROWEAVER_EXPERIMENT_MEMORY_MIB", EXPERIMENT_MEMORY_MIB, _mebibytes
            ),
            addresses={name: read.address(name) for name in PORTS},
        )


def address(service: str, environ: Mapping[str, str] | None = None) -> str:
    """Where `service` listens, for a caller. Raises SettingsError."""
    return _Reader(os.environ if environ is None else environ).address(service)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str = "") -> str:
        return self._environ.get(name, "").strip() or default

    def switch(self, name: str) -> bool:
        value = self.text(name).lower()
        if value not in _YES | _NO:
            raise SettingsError(f"{name}={value} is neither true nor false")
        return value in _YES

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name, allowed[0])
        if value not in allowed:
            raise SettingsError(f"{name}={value} is none of {', '.join(allowed)}")
        return value

    def deployment_backend(self) -> str:
        """As it is told; inside a cluster, that cluster, and elsewhere this machine."""
        name = "NEUROWEAVER_DEPLOYMENT_BACKEND"
        if self.text(name):
            return self.choice(name, BACKENDS)
        return "kubernetes" if self.text("KUBERNETES_SERVICE_HOST") else "local"

    def number(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        value = self.text(name)
        if not value:
            return default
        try:
            return parse(value)
        except ValueError as error:
            raise SettingsError(f"{name}={value} is not {error}") from error

    def home(self) -> Path:
        home = Path(self.text("NEUROWEAVER_HOME", "~/.neuroweaver"))
        try:
            home = home.expanduser()
        except RuntimeError as error:
            raise SettingsError(f"NEUROWEAVER_HOME={home}: there is no such user's home") from error
        if not home.is_absolute():
            raise SettingsError(f"NEUROWEAVER_HOME={home} is not an absolute path")
        if home.exists() and not home.is_dir():
            raise SettingsError(f"NEUROWEAVER_HOME={home} is a file, not a folder")
        return home

    def file(self, name: str) -> Path | None:
        value = self.text(name)
        if value and not Path(value).is_absolute():
            raise SettingsError(f"{name}={value} is not an absolute path")
        return Path(value) if value else None

    def database_url(self, home: Path, service: str) -> str:
        value = self.text("NEUROWEAVER_DATABASE_URL")
        if not value:
            return f"sqlite:///{home / f'{service}.db'}"
        if _scheme(value) not in {"postgresql", "postgres"}:
            # The URL may hold a password, so the message does not repeat it.
            raise SettingsError(
                "NEUROWEAVER_DATABASE_URL does not begin with postgresql://; leave it empty for the embedded "
                "database under NEUROWEAVER_HOME"
            )
        return value

    def artifacts_url(self) -> str:
        value = self.text("NEUROWEAVER_ARTIFACTS_URL")
        if value and (wrong := _wrong_with_artifacts(value)):
            # The URL may hold a secret, so the message does not repeat it.
            raise SettingsError(
                f"NEUROWEAVER_ARTIFACTS_URL {wrong}; it is file:///folder, s3://bucket/prefix or such, or "
                "empty for a folder under NEUROWEAVER_HOME"
            )
        return value

    def url(self, name: str, schemes: tuple[str, ...]) -> str:
        value = self.text(name)
        if value and _scheme(value) not in schemes:
            raise SettingsError(
                f"{name} begins with none of {', '.join(f'{scheme}://' for scheme in schemes)}"
            )
        return value

    def address(self, service: str) -> str:
        name = f"NEUROWEAVER_{service.upper()}_ADDRESS"
        value = self.text(name)
        if not value:
            own = f"NEUROWEAVER_{service.upper()}_PORT"
            return f"127.0.0.1:{self.number(own, PORTS[service], _port)}"
        host, colon, port = value.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise SettingsError(f"{name}={value} is not host:port")
        return value


def _wrong_with_artifacts(url: str) -> str:
    """What prevents its use; empty if nothing does."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a URL"
    if not parts.scheme or "://" not in url:
        return "is not a URL"
    if "@" in parts.netloc or parts.query or parts.fragment or "::" in url:
        return "holds more than a place (credentials come from the store's own environment variables)"
    if parts.scheme == "file":
        folder = Path(unquote(parts.path))
        is_folder = not parts.netloc and folder.is_absolute() and not folder.is_file()
        return "" if is_folder else "names no absolute path of a folder"
    return "" if parts.netloc else "names no bucket"


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


def _port(value: str) -> int:
    if not (value.isdecimal() and int(value) < 65536):
        raise ValueError("a port between 0 and 65535")
    return int(value)


def _mebibytes(value: str) -> int:
    if not (value.isdecimal() and int(value)):
        raise ValueError("a whole number of MiB above 0")
    return int(value)


def _positive(value: str) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError("a number of seconds above 0")
    return number


def _not_negative(value: str) -> float:
    number = _finite(value)
    if number < 0:
        raise ValueError("a number of seconds, 0 or above")
    return number


def _finite(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number of seconds") from None
    if not -float("inf") < number < float("inf"):
        raise ValueError("a finite number of seconds")
    return number
