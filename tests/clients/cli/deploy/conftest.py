from __future__ import annotations

import pytest

from clients.fake_deployer import FakeDeployer
from clients.fakes import serving


@pytest.fixture
def deployer() -> FakeDeployer:
    return FakeDeployer()


@pytest.fixture(autouse=True)
def service(deployer, fake_registry, monkeypatch):
    with serving(deployer, fake_registry) as address:
        for name in ("DEPLOYER", "REGISTRY"):
            monkeypatch.setenv(f"NEUROWEAVER_{name}_ADDRESS", address)
        yield address
