from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import postgres
from neuroweaver.base_models.catalog import BUILTIN, resolve
from neuroweaver.base_models.folders import materialize
from neuroweaver.mesh.wire import telemetry

_EXPORTER = InMemorySpanExporter()

# The longest files, the longest first: what begins last decides how long one worker goes on after the others.
_FIRST = (
    "e2e/test_real_model.py",
    "e2e/test_main_job.py",
    "registry/rpc/test_bad_input.py",
    "docs/test_wheel.py",
    "e2e/test_storm.py",
    "registry/test_state_machine.py",
    "deployer/control/test_reconciler.py",
    "docs/test_recipes.py",
)
_TESTS = f"{Path(__file__).parent.as_posix()}/"

# How long an example takes says something of the machine alone.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Workers beside each other share the cores; threads that wait for each other crawl on a busy machine."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    # As where models are trained and served: bitsandbytes would load a compiler that nothing uses.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.as_posix().removeprefix(_TESTS), len(places)))


@pytest.fixture(scope="session", autouse=True)
def _traced() -> None:
    """A process sets its tracer provider once."""
    telemetry.start("tests", processors=[SimpleSpanProcessor(_EXPORTER)])


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """What was traced during the test: `spans.get_finished_spans()`."""
    _EXPORTER.clear()
    return _EXPORTER


@pytest.fixture(scope="session")
def shipped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that comes with the project, converted once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    home = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return materialize(resolve(BUILTIN, home=home), home)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    folder = postgres.binaries()
    if folder is None:
        pytest.skip(
            "PostgreSQL's server is not installed (Debian: apt-get install postgresql): its half is not tested"
        )
    with postgres.server(folder) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty database of its own."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        yield postgres_server.removesuffix("postgres") + name
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
