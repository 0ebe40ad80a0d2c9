from __future__ import annotations

from neuroweaver.deployer.artifacts.versions import bundle_of
from neuroweaver.deployer.domain.backend import DesiredRevision, DesiredState, Key
from neuroweaver.deployer.domain.serving import serving_config
from neuroweaver.v1 import deployer_pb2, registry_pb2

PIN = {"model_digest": "1" * 64, "tokenizer_digest": "2" * 64, "chat_template_digest": "3" * 64}


def test_a_model_server_is_told_all_digests_of_the_base_model():
    version = registry_pb2.ModelVersion(version="1.0.0", base=registry_pb2.BasePin(name="base", **PIN))
    revision = DesiredRevision(1, bundle_of(version), 1, 100)
    spec = deployer_pb2.DeploymentSpec()
    config = serving_config(
        DesiredState(Key("default", "advisor", "default"), "r", spec, (revision,)), revision
    )
    told = (config.base_digest, config.tokenizer_digest, config.chat_template_digest)
    assert told == ("1" * 64, "2" * 64, "3" * 64)


def test_a_version_without_them_changes_no_configuration():
    version = registry_pb2.ModelVersion(version="1.0.0", base=registry_pb2.BasePin(name="base"))
    revision = DesiredRevision(1, bundle_of(version), 1, 100)
    spec = deployer_pb2.DeploymentSpec()
    config = serving_config(
        DesiredState(Key("default", "advisor", "default"), "r", spec, (revision,)), revision
    )
    assert not {"tokenizer_digest", "chat_template_digest"} & config.plain().keys()
