from __future__ import annotations

from pathlib import Path

import pytest

from neuroweaver.deployer.settings import DeployerSettings
from neuroweaver.experiment.settings import ExperimentSettings
from neuroweaver.mesh.wire.environment import SettingsError, without_secrets
from neuroweaver.mesh.wire.settings import address
from neuroweaver.registry.settings import RegistrySettings
from neuroweaver.trainer.settings import TrainerSettings


def test_the_defaults_need_no_variable():
    settings = TrainerSettings.from_environment({"HOME": "/home/ada"})

    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 50052, 51052)
    assert settings.home == Path.home() / ".neuroweaver"
    assert settings.database_url == f"sqlite:///{Path.home()}/.neuroweaver/trainer.db"
    assert settings.addresses["registry"] == "127.0.0.1:50051"
    assert RegistrySettings.from_environment({}).artifacts_url == ""
    assert not settings.debug


def test_each_variable_is_read():
    settings = RegistrySettings.from_environment(
        {
            "DEBUG": "true",
            "NEUROWEAVER_HOME": "/srv/nw",
            "NEUROWEAVER_REGISTRY_PORT": "6001",
            "NEUROWEAVER_DATABASE_URL": "postgresql://u:p@db/nw",
            "NEUROWEAVER_ARTIFACTS_URL": "s3://models/prod",
            "NEUROWEAVER_TRAINER_ADDRESS": "trainer.internal:50052",
            "NEUROWEAVER_DRAIN_S": "3.5",
            "NEUROWEAVER_DEADLINE_S": "9",
            "NEUROWEAVER_LOG_FORMAT": "json",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        },
    )

    assert settings.debug
    assert settings.home == Path("/srv/nw")
    assert (settings.port, settings.metrics_port) == (6001, 7001)
    assert settings.database_url == "postgresql://u:p@db/nw"
    assert settings.artifacts_url == "s3://models/prod"
    assert settings.addresses["trainer"] == "trainer.internal:50052"
    assert settings.addresses["registry"] == "127.0.0.1:6001"
    assert (settings.drain_s, settings.deadline_s) == (3.5, 9)
    assert (settings.log_format, settings.otlp_endpoint) == ("json", "http://collector:4317")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEBUG", "perhaps"),
        ("NEUROWEAVER_HOME", "relative/path"),
        ("NEUROWEAVER_HOME", "~nobody-of-that-name/x"),
        ("NEUROWEAVER_HOME", "/etc/passwd"),
        ("NEUROWEAVER_HOST", "0.0.0.0"),
        ("NEUROWEAVER_HOST", "example.org"),
        ("NEUROWEAVER_REGISTRY_PORT", "99999"),
        ("NEUROWEAVER_REGISTRY_PORT", "-1"),
        ("NEUROWEAVER_REGISTRY_PORT", "http"),
        ("NEUROWEAVER_REGISTRY_METRICS_PORT", "x"),
        ("NEUROWEAVER_DATABASE_URL", "mysql://db"),
        ("NEUROWEAVER_DATABASE_URL", "sqlite:///shared.db"),
        ("NEUROWEAVER_DATABASE_URL", "postgresql://[broken"),
        ("NEUROWEAVER_ARTIFACTS_URL", "models/prod"),
        ("NEUROWEAVER_ARTIFACTS_URL", "s3:models"),
        ("NEUROWEAVER_ARTIFACTS_URL", "s3:///prod"),
        ("NEUROWEAVER_ARTIFACTS_URL", "s3://[broken"),
        ("NEUROWEAVER_ARTIFACTS_URL", "simplecache::s3://models"),
        ("NEUROWEAVER_ARTIFACTS_URL", "file://relative"),
        ("NEUROWEAVER_ARTIFACTS_URL", "file:///etc/passwd"),
        ("NEUROWEAVER_ALLOW_INSECURE", "si"),
        ("NEUROWEAVER_DEADLINE_S", "0"),
        ("NEUROWEAVER_DRAIN_S", "-1"),
        ("NEUROWEAVER_DRAIN_S", "nan"),
        ("NEUROWEAVER_DRAIN_S", "soon"),
        ("NEUROWEAVER_LOG_FORMAT", "xml"),
        ("NEUROWEAVER_TRAINER_ADDRESS", "no-port"),
        ("NEUROWEAVER_TRAINER_ADDRESS", "host:0"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
    ],
)
def test_a_wrong_value_is_refused_by_the_variables_name(name, value):
    with pytest.raises(SettingsError, match=name):
        RegistrySettings.from_environment({name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ExperimentSettings, "NEUROWEAVER_EXPERIMENT_MEMORY_MIB", "0"),
        (ExperimentSettings, "NEUROWEAVER_EXPERIMENT_MEMORY_MIB", "1GiB"),
        (TrainerSettings, "NEUROWEAVER_TRAINER_SLOTS", "0"),
        (TrainerSettings, "NEUROWEAVER_TRAINER_SLOTS", "many"),
        (TrainerSettings, "NEUROWEAVER_DATA", "data"),
        (DeployerSettings, "NEUROWEAVER_SERVING_PORT", "70000"),
    ],
)
def test_a_wrong_value_of_one_service_is_refused_there(kind, name, value):
    with pytest.raises(SettingsError, match=name):
        kind.from_environment({name: value})
    RegistrySettings.from_environment({name: value})


def test_a_refused_database_url_is_not_repeated():
    with pytest.raises(SettingsError) as caught:
        RegistrySettings.from_environment({"NEUROWEAVER_DATABASE_URL": "mysql://root:hunter2@db"})

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["s3://AKIA7:hunter2@models/prod", "s3://hunter2@models", "gs://models?token=hunter2", "s3://m#hunter2"],
)
def test_credentials_in_the_artifacts_url_are_refused_and_not_repeated(url: str):
    with pytest.raises(SettingsError, match="the store's own environment variables") as caught:
        RegistrySettings.from_environment({"NEUROWEAVER_ARTIFACTS_URL": url})

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "file:///srv/models", "s3://models", "s3://models/a/b", "gs://models/x"])
def test_artifacts_lie_where_the_url_says(url: str):
    settings = RegistrySettings.from_environment({"NEUROWEAVER_ARTIFACTS_URL": url})

    assert settings.artifacts_url == url


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_a_loopback_host_needs_no_leave(host):
    assert RegistrySettings.from_environment({"NEUROWEAVER_HOST": host}).host == host


def test_another_host_needs_to_be_allowed():
    environ = {"NEUROWEAVER_HOST": "0.0.0.0", "NEUROWEAVER_ALLOW_INSECURE": "true"}

    assert RegistrySettings.from_environment(environ).host == "0.0.0.0"


def test_a_service_is_found_under_its_address_or_its_port():
    assert address("experiment", {}) == "127.0.0.1:50054"
    assert address("experiment", {"NEUROWEAVER_EXPERIMENT_PORT": "7"}) == "127.0.0.1:7"
    assert address("experiment", {"NEUROWEAVER_EXPERIMENT_ADDRESS": "[::1]:8"}) == "[::1]:8"


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        ({}, "local"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NEUROWEAVER_DEPLOYMENT_BACKEND": "local"}, "local"),
    ],
)
def test_deployments_go_to_the_cluster_that_the_deployer_is_in(environ, backend):
    assert DeployerSettings.from_environment(environ).deployment_backend == backend


def test_a_backend_that_there_is_not_is_refused():
    with pytest.raises(SettingsError, match="NEUROWEAVER_DEPLOYMENT_BACKEND=cloud"):
        DeployerSettings.from_environment({"NEUROWEAVER_DEPLOYMENT_BACKEND": "cloud"})


def test_another_tasks_process_gets_no_secret_but_those_it_needs() -> None:
    environ = {
        "PATH": "/bin",
        "HF_TOKEN": "t",
        "OPENAI_API_KEY": "k",
        "NEUROWEAVER_DATABASE_URL": "postgresql://u:p@h/d",
        "AWS_SECRET_ACCESS_KEY": "s",
        "PGPASSWORD": "p",
        "TOKENIZERS_PARALLELISM": "false",
        "NEUROWEAVER_AUDIT_KEY_FILE": "/k",
    }
    assert without_secrets(environ, "HF_TOKEN").keys() == {
        "PATH",
        "HF_TOKEN",
        "TOKENIZERS_PARALLELISM",
        "NEUROWEAVER_AUDIT_KEY_FILE",
    }
