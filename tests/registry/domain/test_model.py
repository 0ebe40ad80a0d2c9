from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from semver import Version

from neuroweaver.mesh.wire.errors import Aborted, FailedPrecondition, InvalidArgument
from neuroweaver.registry.domain.model import (
    MAX_CONFIG_BYTES,
    MAX_METRICS,
    MAX_TAGS,
    Artifact,
    BasePin,
    Draft,
    Interval,
    Lineage,
    Metric,
    Model,
    ModelVersion,
    State,
    check_model_id,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
A, B = "a" * 64, "b" * 64
WEIGHTS = Artifact(path="adapter_model.safetensors", digest=A, size_bytes=10)


def made(draft: Draft, version: str = "1.0.0", parent: ModelVersion | None = None) -> ModelVersion:
    return draft.as_version("advisor", Version.parse(version), parent, NOW)


def refused_field(error: pytest.ExceptionInfo[InvalidArgument]) -> str:
    return error.value.violations[0][0]


@pytest.mark.parametrize("model_id", ["a", "service-advisor", "a1", "1a", "a" * 63])
def test_a_dns_label_is_a_model_id(model_id: str):
    check_model_id("model_id", model_id)


@pytest.mark.parametrize(
    "model_id",
    [
        "",
        "A",
        "-a",
        "a-",
        "a_b",
        "a/b",
        "a.b",
        "..",
        "a\0",
        "a\n",
        "a b",
        "\u0430",
        "a\u202eb",
        "\uff11",
        "a" * 64,
    ],
)
def test_anything_else_is_not(model_id: str):
    with pytest.raises(InvalidArgument) as error:
        check_model_id("model_id", model_id)

    assert refused_field(error) == "model_id"


def test_a_version_without_artifacts_is_a_draft_and_one_with_them_is_trained():
    assert made(Draft()).state is State.DRAFT
    assert made(Draft(artifacts=[WEIGHTS])).state is State.TRAINED
    assert made(Draft(artifacts=[WEIGHTS], state=State.VALIDATED)).state is State.VALIDATED


@pytest.mark.parametrize("state", [State.TRAINED, State.VALIDATED])
def test_a_version_without_artifacts_cannot_begin_as_trained(state: State):
    with pytest.raises(InvalidArgument, match="state: a version without artifacts"):
        made(Draft(state=state))


@pytest.mark.parametrize("state", [State.DEPLOYED, State.DEPRECATED, State.ARCHIVED])
def test_a_version_cannot_begin_as_deployed_or_later(state: State):
    with pytest.raises(InvalidArgument, match="state: a version cannot begin"):
        made(Draft(artifacts=[WEIGHTS], state=state))


def test_config_tags_and_base_are_laid_over_the_parents():
    base = BasePin(name="smollm2", model_digest=A)
    parent = made(Draft(config={"lora_r": 16, "seed": 1}, tags={"team": "a", "x": "1"}, base=base))

    child = made(Draft(config={"seed": 2}, tags={"team": "b"}), "1.1.0", parent)

    assert child.config == {"lora_r": 16, "seed": 2}
    assert child.tags == {"team": "b", "x": "1"}
    assert child.base == base
    assert child.parent_version == "1.0.0"


def test_metrics_lineage_description_and_artifacts_are_not_inherited():
    parent = made(
        Draft(
            description="first",
            metrics={"loss": Metric(value=1.0)},
            lineage=Lineage(training_job_id="job"),
            artifacts=[WEIGHTS],
        )
    )

    child = made(Draft(), "1.1.0", parent)

    assert (child.description, child.metrics, child.lineage, child.artifacts) == ("", {}, None, ())
    assert child.state is State.DRAFT


@pytest.mark.parametrize(
    ("mine", "parents"),
    [
        (BasePin(model_digest=A), BasePin(model_digest=B)),
        (BasePin(name="x", model_digest=A, tokenizer_digest=A), BasePin(name="x", model_digest=A, tokenizer_digest=B)),
        (BasePin(chat_template_digest=A), BasePin(chat_template_digest=B)),
        (BasePin(name="x"), BasePin(name="y")),
        (BasePin(name="x", model_digest=A), BasePin(name="y")),
    ],
)  # fmt: skip
def test_a_parent_pinned_to_another_base_is_refused(mine: BasePin, parents: BasePin):
    with pytest.raises(FailedPrecondition) as error:
        made(Draft(base=mine), "1.1.0", made(Draft(base=parents)))

    assert error.value.reason == "BASE_MISMATCH"


@pytest.mark.parametrize(
    ("mine", "parents"),
    [
        (BasePin(name="/models/x", model_digest=A), BasePin(name="org/x", model_digest=A)),
        (BasePin(name="x", model_digest=A), BasePin(name="x")),
        (BasePin(name="x"), BasePin()),
    ],
)
def test_a_base_that_may_be_the_same_is_taken(mine: BasePin, parents: BasePin):
    assert made(Draft(base=mine), "1.1.0", made(Draft(base=parents))).base == mine


def test_tags_are_counted_with_the_inherited_ones():
    parent = made(Draft(tags={f"a{n}": "" for n in range(MAX_TAGS)}))

    with pytest.raises(InvalidArgument, match="tags: would be 65"):
        made(Draft(tags={"one-more": ""}), "1.1.0", parent)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda x: Metric(value=x), 'metrics["loss"].value'),
        (lambda x: Metric(value=0.0, samples=(1.0, x)), 'metrics["loss"].samples'),
        (lambda x: Metric(value=0.0, interval=Interval(x, 1.0, 0.95)), 'metrics["loss"].interval'),
        (lambda x: Metric(value=0.0, interval=Interval(0.0, 1.0, x)), 'metrics["loss"].interval.confidence'),
    ],
    ids=["value", "samples", "interval", "confidence"],
)
def test_a_metric_is_finite(make, field: str, number: float):
    version = made(Draft())
    with pytest.raises(InvalidArgument) as error:
        version.measured({"loss": make(number)})

    assert refused_field(error) == field


def test_an_interval_ends_after_it_begins():
    with pytest.raises(InvalidArgument, match="ends before it begins"):
        made(Draft(metrics={"loss": Metric(value=0.0, interval=Interval(1.0, 0.0, 0.95))}))


def test_metrics_are_added_and_replaced_by_name():
    version = made(Draft(metrics={"a": Metric(value=1.0), "b": Metric(value=2.0)}))

    measured = version.measured({"b": Metric(value=3.0), "c": Metric(value=4.0)})

    assert {name: metric.value for name, metric in measured.metrics.items()} == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert len(version.metrics) == 2


def test_metrics_are_bounded_over_all_updates():
    version = made(Draft(metrics={f"m{n}": Metric(value=0.0) for n in range(MAX_METRICS)}))

    with pytest.raises(InvalidArgument, match="metrics: would be 1001"):
        version.measured({"more": Metric(value=0.0)})


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, {"deep": -math.inf}]])
def test_a_config_holds_finite_numbers(value):
    with pytest.raises(InvalidArgument, match="config"):
        made(Draft(config={"learning_rate": value}))


def test_a_config_is_bounded():
    with pytest.raises(InvalidArgument, match="config: is larger"):
        made(Draft(config={"x": "y" * MAX_CONFIG_BYTES}))


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (Draft(description="a\0b"), "description"),
        (Draft(tags={"a": "b\x1b[31m"}), 'tags["a"]'),
        (Draft(base=BasePin(name="a\0")), "base.name"),
        (Draft(lineage=Lineage(dataset_path="\x07")), "lineage.dataset_path"),
        (Draft(metrics={"a": Metric(value=0.0, unit="\0")}), 'metrics["a"].unit'),
    ],
)
def test_control_characters_are_refused_by_name(draft: Draft, field: str):
    with pytest.raises(InvalidArgument) as error:
        made(draft)

    assert refused_field(error) == field


def test_prose_may_have_lines():
    assert made(Draft(description="one\n\ttwo\r\n")).description == "one\n\ttwo\r\n"


@pytest.mark.parametrize(
    ("paths", "field"),
    [
        (["a.json", "a.json"], "artifacts[1].path"),
        (["a/b.json", "LICENSE", "LICENSE/c.json"], "artifacts[2].path"),
        (["LICENSE/c.json", "LICENSE"], "artifacts[0].path"),
        (["a.json", "pytorch_model.bin"], "artifacts[1].path"),
    ],
)
def test_every_file_has_a_place_of_its_own(paths: list[str], field: str):
    with pytest.raises(InvalidArgument) as error:
        made(Draft(artifacts=[Artifact(path=path, digest=A, size_bytes=1) for path in paths]))

    assert refused_field(error) == field


def test_a_version_moves_through_its_states():
    version = made(Draft(artifacts=[WEIGHTS]))

    for state in (State.VALIDATED, State.DEPLOYED, State.DEPRECATED, State.ARCHIVED, State.DEPRECATED):
        version = version.moved_to(state)
        assert version.state is state


@pytest.mark.parametrize(
    ("state", "target"),
    [
        (State.TRAINED, State.DEPLOYED),
        (State.TRAINED, State.DRAFT),
        (State.TRAINED, State.TRAINED),
        (State.DEPLOYED, State.ARCHIVED),
        (State.ARCHIVED, State.DEPLOYED),
    ],
)
def test_a_transition_that_does_not_exist_is_refused(state: State, target: State):
    version = ModelVersion(
        model_id="m", version=Version(1), state=state, artifacts=(WEIGHTS,), create_time=NOW, update_time=NOW
    )
    with pytest.raises(FailedPrecondition) as error:
        version.moved_to(target)

    assert error.value.reason == "NO_SUCH_TRANSITION"


def test_a_draft_without_artifacts_is_not_trained():
    with pytest.raises(FailedPrecondition, match="without artifacts"):
        made(Draft()).moved_to(State.TRAINED)


def test_a_stale_etag_is_refused():
    model = Model(model_id="m", create_time=NOW, update_time=NOW, etag="7")

    assert model.updated({"description": "new"}, "7").description == "new"
    assert model.updated({"description": "new"}, "").description == "new"
    with pytest.raises(Aborted):
        model.updated({"description": "new"}, "6")


def test_samples_are_bounded_over_all_metrics_and_updates():
    metrics = {f"m{number}": Metric(value=0.0, samples=(0.5,) * 10_000) for number in range(5)}
    version = Draft(metrics=metrics).as_version("advisor", Version.parse("1.0.0"), None, NOW)
    with pytest.raises(InvalidArgument, match=r"metrics: would hold 50001 samples; at most 50000"):
        version.measured({"one": Metric(value=0.0, samples=(0.5,))})
    assert version.measured({"m0": Metric(value=0.0, samples=(0.5,))})
