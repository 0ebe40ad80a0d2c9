from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from deployer.kubernetes.desired import SETTINGS
from deployer.kubernetes.fake import Fake, kubeconfig, serving
from neuroweaver.cluster.api import Api, Patience
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.deployer.kubernetes.observing.watching import Backoff
from neuroweaver.deployer.kubernetes.settings import ClusterSettings

QUICK = Patience(attempt_s=30.0, whole_s=60.0, first_wait_s=0.01)


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with serving(Fake()) as made:
        yield made


@pytest.fixture
def settings(fake: Fake, tmp_path: Path) -> ClusterSettings:
    return replace(SETTINGS, kubeconfig=kubeconfig(fake.url, tmp_path))


@pytest.fixture
async def api(settings: ClusterSettings) -> AsyncIterator[Api]:
    made = Api(settings.access, QUICK)
    yield made
    await made.close()


@pytest.fixture
async def backend(settings: ClusterSettings, api: Api) -> AsyncIterator[KubernetesBackend]:
    made = KubernetesBackend(settings, api, Backoff(first_s=0.01, longest_s=0.1))
    yield made
    await made.close()
