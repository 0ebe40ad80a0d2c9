from __future__ import annotations

from deployer.kubernetes.fake import Fake
from deployer.kubernetes.wishes import KEY, NAME, revision, spec, wanted

from neuroweaver.deployer.backend import Observed
from neuroweaver.deployer.kubernetes import kinds
from neuroweaver.deployer.kubernetes.backend import KubernetesBackend
from neuroweaver.v1 import deployer_pb2 as pb


async def test_a_wish_becomes_ready_replicas(backend: KubernetesBackend, fake: Fake):
    assert await backend.observe(KEY, NAME, spec()) == Observed()
    await backend.apply(wanted())
    seen = await backend.observe(KEY, NAME, spec())
    assert seen.exists
    assert [each.phase for each in seen.replicas] == [pb.REPLICA_PHASE_READY] * 2
    assert (seen.desired, seen.weights, seen.applied_generation) == ({1: 2}, {1: 100}, 1)
    assert seen.endpoint == f"http://{NAME}.default.svc:8000/v1"
    assert not seen.drift


async def test_the_same_wish_again_writes_nothing(backend: KubernetesBackend, fake: Fake):
    await backend.apply(wanted())
    calls = len(fake.calls)
    await backend.apply(wanted())
    assert {method for method, _ in fake.calls[calls:]} == {"GET"}
