"""The services as processes of this machine: started, watched, and stopped by their ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Self

from neuroweaver.mesh.wire.settings import DEPLOYMENT_BACKEND, PORTS, SERVING_PORT, Settings

SERVICES: Final = tuple(PORTS)
SUPERVISOR: Final = "local"
"""The package whose program it is."""

# A server drains for up to 20 s after SIGTERM (NEUROWEAVER_DRAIN_S).
_GRACE_S: Final = 30.0
_START_S: Final = 60.0
_POLL_S: Final = 0.1
_TAIL_LINES: Final = 5
_WORKERS_KEYS: Final = frozenset({"OPENAI_API_KEY", "WANDB_API_KEY"})


class ProcessError(Exception):
    """A service cannot be started, or has stopped by itself. The message is one line for people."""


@dataclass(frozen=True)
class Place:
    """Where one service listens and writes."""

    service: str
    host: str
    port: int
    metrics_port: int
    home: Path
    serving_port: int = 0
    """Of the router in front of the deployer's local model servers; 0: there is none, or any will do."""

    @classmethod
    def from_environment(cls, service: str, environ: Mapping[str, str]) -> Place:
        """Raises SettingsError."""
        settings = Settings.from_environment(environ, service=service)
        has_router = service == "deployer" and DEPLOYMENT_BACKEND.read(environ) == "local"
        serving_port = SERVING_PORT.read(environ) if has_router else 0
        return cls(service, settings.host, settings.port, settings.metrics_port, settings.home, serving_port)

    @property
    def ports(self) -> dict[str, int]:
        """Those that it listens on, by the variables that set them."""
        ports = {
            _variable(self.service, "PORT"): self.port,
            _variable(self.service, "METRICS_PORT"): self.metrics_port,
        }
        return ports | ({"NEUROWEAVER_SERVING_PORT": self.serving_port} if self.serving_port else {})

    def is_own_router(self, port: int) -> bool:
        """Whether the router of a deployer that was killed listens there, which the next one takes over."""
        if port != self.serving_port:
            return False
        import psutil  # noqa: PLC0415  only where a port is taken

        config = str(self.home / "deployments" / "_router" / "config.json")
        return any(config in (each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))

    @property
    def is_free(self) -> bool:
        """Whether nothing else listens where it would."""
        return all(is_free(self.host, port) or self.is_own_router(port) for port in self.ports.values())

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.metrics_port}/metrics"

    @property
    def is_listening(self) -> bool:
        """Whether somebody accepts connections at its port."""
        try:
            socket.create_connection((self.host.strip("[]"), self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    @property
    def log(self) -> Path:
        return self.home / "logs" / f"{self.service}.log"

    @property
    def pid_file(self) -> Path:
        return _pid_file(self.home, self.service)


class _Found:
    """A process that another one started, by its id, with what `Fleet` needs of `subprocess.Popen`."""

    returncode = None
    """How it ended, only its parent hears."""

    def __init__(self, service: str, pid: int) -> None:
        self.pid = pid
        self._service = service

    def poll(self) -> int | None:
        """None while it runs."""
        return None if is_service(self.pid, self._service) else 0

    def terminate(self) -> None:
        _signal(self._service, self.pid, signal.SIGTERM)

    def kill(self) -> None:
        _signal(self._service, self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        give_up = time.monotonic() + (_GRACE_S if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired(self._service, give_up)
            time.sleep(_POLL_S)
        return 0


class Fleet:
    """The services of one environment. Leaving the block ends those that it started, unless they were let go.

    environ: the environment of the processes; places and addresses are read from it.
    """

    def __init__(self, environ: Mapping[str, str], services: Sequence[str] = SERVICES) -> None:
        self.places = [Place.from_environment(service, environ) for service in services]
        addresses = {_variable(place.service, "ADDRESS"): place.address for place in self.places}
        # The logs go to files for people, unless somebody asks for JSON.
        self._environ = {**addresses, "NEUROWEAVER_LOG_FORMAT": "human", **environ}
        self._processes: dict[str, subprocess.Popen[bytes] | _Found] = {}
        self._are_recorded = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts every service. Raises ProcessError naming the first port that is taken and its variable."""
        for place in self.places:
            for variable, port in place.ports.items():
                if not (is_free(place.host, port) or place.is_own_router(port)):
                    raise ProcessError(
                        f"port {port} of the {place.service} is taken on {place.host}: stop what listens "
                        f"there, or set {variable} to another port"
                    )
        for place in self.places:
            self._processes[place.service] = _spawn(place, self._environ)

    def wait_until_healthy(self, on_change: Callable[[Mapping[str, str]], None] | None = None) -> None:
        """on_change: called with every state when one has changed. Raises ProcessError if one stays away."""
        # Imported while the services start. A service is asked once it listens: gRPC backs off when refused.
        from neuroweaver.client.connection import Client  # noqa: PLC0415

        give_up = time.monotonic() + _START_S
        states = dict.fromkeys(self._processes, "starting")
        with Client({place.service: place.address for place in self.places}) as client:
            while late := [place for place in self.places if states[place.service] == "starting"]:
                self.check_alive()
                for place in late:
                    if place.is_listening and client.is_healthy(place.service, timeout_s=1.0):
                        states[place.service] = "serving"
                        if on_change:
                            on_change(states)
                if time.monotonic() > give_up:
                    raise ProcessError(
                        f"the {late[0].service} is not healthy after {_START_S:.0f} s; see {late[0].log}"
                    )
                time.sleep(_POLL_S)

    def check_alive(self) -> None:
        """Raises ProcessError naming a service that has stopped by itself, with its last words."""
        for place in self.places:
            if ending := self.ending(place):
                raise ProcessError(f"the {place.service} has stopped {ending} (log: {place.log})")

    def ending(self, place: Place) -> str:
        """How a service ended, with its last words; empty while it runs."""
        process = self._processes.get(place.service)
        if process is None or process.poll() is None:
            return ""
        return f"({_ending(process.returncode)}): {last_words(place.log)}"

    def start_again(self, place: Place) -> None:
        """One that has ended. Its log is kept beside the new one. Raises OSError."""
        process = self._processes[place.service] = _spawn(place, self._environ)
        if self._are_recorded:
            try:
                _record(place.home, place.service, process.pid)
            except OSError:  # nobody would find it
                _kill(process)
                raise

    def pid(self, service: str) -> int:
        return self._processes[service].pid

    def let_go(self) -> int:
        """Leaves the processes running, with a supervisor that starts again what stops; its process id.

        All ids stay in the home's `run` folder for `end_recorded`.
        """
        for place in self.places:
            _record(place.home, place.service, self.pid(place.service))
        home = self.places[0].home
        # It starts services, with all that they need of the environment.
        process = _launch(SUPERVISOR, supervisor_log(home), self._environ, home)
        _record(home, SUPERVISOR, process.pid)
        self._processes.clear()
        return process.pid

    def take_over(self) -> None:
        """Those that another process let go; what has ended since is to be started again."""
        running = recorded(self.places)
        self._processes = {
            place.service: _Found(place.service, running.get(place.service, 0)) for place in self.places
        }
        self._are_recorded = True

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those still there after the grace period; a second Ctrl-C ends that."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        give_up = time.monotonic() + _GRACE_S
        with ExitStack() as stack:
            for process in self._processes.values():
                stack.callback(_kill, process)
            for process in self._processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, give_up - time.monotonic()))
        self._processes.clear()


def recorded(places: Iterable[Place]) -> dict[str, int]:
    """Process ids by service, of those in the home's `run` folder that still run."""
    found = {place.service: _recorded(place.pid_file, place.service) for place in places}
    return {service: pid for service, pid in found.items() if pid}


def supervisor(home: Path) -> int:
    """The process id of the home's supervisor; 0 if none runs."""
    return _recorded(_pid_file(home, SUPERVISOR), SUPERVISOR)


def supervisor_log(home: Path) -> Path:
    return home / "logs" / "supervisor.log"


def end_recorded(places: Sequence[Place]) -> dict[str, int]:
    """Stops exactly the services that `let_go` recorded and that still run; returns their process ids.

    Their supervisor goes first, so that it starts none of them again. Raises ProcessError for one that may
    not be stopped.
    """
    for home in {place.home for place in places}:
        if pid := supervisor(home):
            _end({SUPERVISOR: pid})
        _pid_file(home, SUPERVISOR).unlink(missing_ok=True)
    running = recorded(places)
    _end(running)
    for place in places:
        place.pid_file.unlink(missing_ok=True)
    return running


def _end(running: Mapping[str, int]) -> None:
    """SIGTERM to all, SIGKILL to those still there after the grace period."""
    for service, pid in running.items():
        _signal(service, pid, signal.SIGTERM)
    give_up = time.monotonic() + _GRACE_S
    for service, pid in running.items():
        while is_service(pid, service):
            if time.monotonic() > give_up:
                _signal(service, pid, signal.SIGKILL)
                break
            time.sleep(_POLL_S)


def is_service(pid: int, service: str) -> bool:
    """Whether the process is that service, by its command line: ids are reused."""
    import psutil  # noqa: PLC0415  only where a process id was recorded

    try:
        return pid > 0 and _module(service) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose last connections are still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that are free now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


def last_words(log: Path) -> str:
    """The last lines of a log in one."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "it wrote no log"
    return " | ".join(line.strip() for line in lines[-_TAIL_LINES:] if line.strip()) or "its log is empty"


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the program through its `finally` blocks: exit code 128 + signal.

    SIGINT raises KeyboardInterrupt, also where a shell that started the program in the background has it
    ignored: services must not be left behind.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers = {signal.SIGTERM: leave, signal.SIGHUP: leave, signal.SIGINT: signal.default_int_handler}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]  # started by nohup, to outlive its terminal
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawn(place: Place, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    place.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.log.parent.mkdir(mode=0o700, exist_ok=True)
    return _launch(place.service, place.log, _needed(place.service, environ), place.home)


def _launch(service: str, log: Path, environ: Mapping[str, str], home: Path) -> subprocess.Popen[bytes]:
    """Its last log is kept beside the new one."""
    with suppress(FileNotFoundError):
        log.replace(log.with_suffix(".log.1"))
    log.touch(mode=0o600)
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603
            # -P: a folder called neuroweaver in the working directory is not imported.
            [sys.executable, "-P", "-m", _module(service)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environ, "NEUROWEAVER_HOME": str(home)},
            # Ctrl-C reaches this process alone, which then ends the services in good order.
            start_new_session=True,
        )


def _pid_file(home: Path, service: str) -> Path:
    return home / "run" / f"{service}.pid"


def _record(home: Path, service: str, pid: int) -> None:
    file = _pid_file(home, service)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text(f"{pid}\n", encoding="ascii")
    part.replace(file)


def _recorded(file: Path, service: str) -> int:
    """0 where none runs."""
    try:
        pid = int(file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0
    return pid if is_service(pid, service) else 0


def _needed(service: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the keys that only the trainer's workers use."""
    return {
        name: value for name, value in environ.items() if service == "trainer" or name not in _WORKERS_KEYS
    }


def _variable(service: str, what: str) -> str:
    return f"NEUROWEAVER_{service.upper()}_{what}"


def _module(service: str) -> str:
    return f"neuroweaver.{service}"


def _kill(process: subprocess.Popen[bytes] | _Found) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _signal(service: str, pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ProcessError(f"the {service} (process {pid}) belongs to another user") from error


def _ending(code: int | None) -> str:
    if code is None:
        return "how is not known"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
