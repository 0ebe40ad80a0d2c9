from neuroweaver.deployer.domain.scaling import portion, share
from neuroweaver.v1 import deployer_pb2 as pb


def test_each_revision_has_the_bounds_of_its_own_share():
    autoscaling = pb.Autoscaling(min_replicas=3, max_replicas=10, target_concurrency=4)
    shared = share(autoscaling, 25)
    assert (shared.min_replicas, shared.max_replicas, shared.target_concurrency) == (1, 3, 4)
    assert (share(autoscaling, 100).min_replicas, share(autoscaling, 100).max_replicas) == (3, 10)
    assert (share(autoscaling, 0).min_replicas, share(autoscaling, 0).max_replicas) == (0, 1)
    assert autoscaling.min_replicas == 3


def test_a_portion_is_rounded_up_exactly():
    assert [portion(10, percent) for percent in (0, 1, 10, 11, 70, 100)] == [0, 1, 1, 2, 7, 10]
