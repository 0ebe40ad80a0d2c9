from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from semver import Version

from abandoning import is_given_up
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.registry.comparison.compare import Comparison, MetricDifference, compare, flattened
from neuroweaver.registry.domain.model import (
    Artifact,
    BasePin,
    Direction,
    Interval,
    Lineage,
    Metric,
    ModelVersion,
    State,
)
from neuroweaver.registry.domain.versions import Level

NOW = datetime(2030, 1, 2, tzinfo=UTC)
A, B, C = "a" * 64, "b" * 64, "c" * 64
HIGHER, LOWER = Direction.HIGHER_IS_BETTER, Direction.LOWER_IS_BETTER
WEIGHTS = Artifact(path="adapter/adapter_model.safetensors", digest=A, size_bytes=10)
PIN = BasePin(
    name="org/base", model_digest=A, tokenizer_digest=A, chat_template_digest=A, context_length=2048
)


def version(number: str = "1.0.0", model_id: str = "advisor", **fields: Any) -> ModelVersion:
    given = {"state": State.TRAINED, "create_time": NOW, "update_time": NOW, **fields}
    return ModelVersion(model_id=model_id, version=Version.parse(number), **given)


def compared(a: dict[str, Any], b: dict[str, Any], **options: Any) -> Comparison:
    return compare(version("1.0.0", **a), version("1.1.0", **b), **options)


def of_metrics(a: dict[str, Metric], b: dict[str, Metric], **options: Any) -> Comparison:
    return compared({"metrics": a}, {"metrics": b}, **options)


def named(comparison: Comparison, name: str) -> MetricDifference:
    return next(metric for metric in comparison.metrics if metric.name == name)


def around(value: float, half: float, **fields: Any) -> Metric:
    """A normal estimate with its 95 % interval."""
    return Metric(value=value, interval=Interval(value - half, value + half, 0.95), **fields)


def finding(comparison: Comparison, aspect: str) -> tuple[bool, str]:
    found = next(each for each in comparison.compatibility if each.aspect == aspect)
    return found.is_compatible, found.explanation


# Fields


def test_fields_are_compared_by_path_into_nested_configuration():
    comparison = compared(
        {
            "config": {"epochs": 3, "optimizer": {"lr": 1e-4, "name": "adamw"}, "gone": None, "old": True},
            "tags": {"team/a.b": "x"},
            "base": PIN,
            "lineage": Lineage(dataset_digest=A, dataset_path="a.csv", training_job_id="job-1"),
            "artifacts": (WEIGHTS,),
        },
        {
            "config": {"epochs": 3.0, "optimizer": {"lr": 2e-4, "name": "adamw"}, "modules": ["q", "v"]},
            "tags": {"team/a.b": "y"},
            "base": BasePin(name="org/base", model_digest=A, tokenizer_digest=B, chat_template_digest=A),
            "lineage": Lineage(dataset_digest=B, dataset_path="b.csv", training_job_id="job-2"),
            "artifacts": (Artifact(path=WEIGHTS.path, digest=B, size_bytes=10),),
        },
    )

    assert [(each.path, each.a, each.b) for each in comparison.differences] == [
        ("config.modules", None, ["q", "v"]),
        ("config.old", True, None),
        ("config.optimizer.lr", 1e-4, 2e-4),
        ("artifacts.adapter/adapter_model.safetensors", A, B),
        ("base.context_length", 2048, None),
        ("base.tokenizer_digest", A, B),
        ("lineage.dataset_digest", A, B),
        ("lineage.dataset_path", "a.csv", "b.csv"),
        ("tags.team/a.b", "x", "y"),
    ]


def test_state_metrics_and_description_are_no_fields():
    comparison = compared(
        {"description": "a", "metrics": {"loss": Metric(value=1, samples=(1, 1))}, "etag": "1"},
        {"description": "b", "state": State.DEPLOYED, "parent_version": "1.0.0", "etag": "2"},
    )

    assert comparison.differences == ()


def test_true_is_not_one_at_any_depth():
    same = {"a": 1, "b": [1.0, {"c": False}], "d": True}

    assert (
        compared({"config": same}, {"config": {"a": 1.0, "b": [1, {"c": False}], "d": True}}).differences
        == ()
    )
    paths = [
        each.path
        for each in compared(
            {"config": same}, {"config": {"a": True, "b": [1, {"c": 0}], "d": 1}}
        ).differences
    ]
    assert paths == ["config.a", "config.b", "config.d"]


def test_keys_with_dots_and_brackets_keep_their_paths_apart():
    flat = flattened({"a.b": 1, "a": {"b": 2, "c d": 3}, 'x"]': {"y": 4}, "": 5}, "config")

    assert flat == {
        'config["a.b"]': 1,
        "config.a.b": 2,
        'config.a["c d"]': 3,
        'config["x\\"]"].y': 4,
        'config[""]': 5,
    }


def test_a_hostile_configuration_does_not_blow_up_in_paths():
    long = {"k" * 100_000: {str(index): index for index in range(900)}}
    wide = {"k" * 200: {str(index): index for index in range(10_000)}}
    deep: dict[str, Any] = {}
    for _ in range(90):
        deep = {"key": deep, "other": 1}

    for config in (long, wide, deep):
        told = sum(len(each.path) for each in compared({"config": config}, {}).differences)
        assert 0 < told < 200_000


# Metrics


def test_metrics_are_ordered_by_name_and_lone_ones_are_shown():
    comparison = of_metrics(
        {"b": Metric(value=2, direction=LOWER, unit="s"), "a": Metric(value=1)}, {"a": Metric(value=3)}
    )

    assert comparison.metrics == (
        MetricDifference(name="a", a=1, b=3, difference=2),
        MetricDifference(name="b", a=2, b=None, direction=LOWER, unit="s"),
    )


@pytest.mark.parametrize(
    ("a", "b", "direction"),
    [
        (HIGHER, Direction.UNKNOWN, HIGHER),
        (Direction.UNKNOWN, LOWER, LOWER),
        (HIGHER, HIGHER, HIGHER),
        (HIGHER, LOWER, Direction.UNKNOWN),
    ],
)
def test_the_direction_comes_from_whoever_knows_it_and_is_unknown_in_contradiction(a, b, direction):
    comparison = of_metrics({"x": around(1, 0.1, direction=a)}, {"x": around(9, 0.1, direction=b)})

    metric = named(comparison, "x")
    assert metric.direction is direction
    assert metric.is_better is {HIGHER: True, LOWER: False, Direction.UNKNOWN: None}[direction]


def test_what_lies_within_chance_is_not_decided():
    metric = named(
        of_metrics({"x": around(1, 1, direction=HIGHER)}, {"x": around(2, 1, direction=HIGHER)}), "x"
    )

    assert metric.p_value == pytest.approx(0.166, abs=1e-3)
    assert metric.is_better is None


def test_a_difference_is_decided_only_if_it_survives_holms_correction():
    # p-values of 0.005, 0.021 and 0.6, by (b - a) / (0.5 * sqrt(2)) standard errors.
    moved = {"x": 1.985, "y": 1.632, "z": 0.371}
    before = {name: around(0, 0.98, direction=HIGHER) for name in moved}
    after = {name: around(value, 0.98, direction=HIGHER) for name, value in moved.items()}

    both = of_metrics({"x": before["x"], "y": before["y"]}, {"x": after["x"], "y": after["y"]})
    three = of_metrics(before | {"u": Metric(value=1)}, after | {"u": Metric(value=2)})

    assert [named(both, name).is_better for name in "xy"] == [True, True]
    assert [named(three, name).is_better for name in "xyzu"] == [True, True, None, None]
    assert [named(three, name).p_value for name in "xyz"] == pytest.approx([0.005, 0.021, 0.6], abs=5e-4)
    corrected = [named(three, name).corrected_p_value for name in "xyz"]
    assert corrected == pytest.approx([0.015, 0.042, 0.6], abs=1e-3)
    crowd = {f"n{index}": around(0, 1) for index in range(10)}
    assert [named(of_metrics(before | crowd, after | crowd), name).is_better for name in "xyz"] == [None] * 3


def test_the_asked_confidence_decides():
    a, b = {"x": around(0, 0.98, direction=LOWER)}, {"x": around(1.632, 0.98, direction=LOWER)}

    assert named(of_metrics(a, b, confidence=0.9), "x").is_better is False
    assert named(of_metrics(a, b, confidence=0.99), "x").is_better is None
    assert named(of_metrics(a, b, confidence=0.99), "x").interval.confidence == 0.99


@pytest.mark.parametrize("confidence", [0, 1, -1, 1.5, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float):
    with pytest.raises(InvalidArgument, match="confidence"):
        compared({}, {}, confidence=confidence)


def test_what_the_base_model_reached_decides_nothing_and_costs_nothing():
    scores = {"score": around(5, 1, direction=HIGHER), "score_base": around(1, 1, direction=HIGHER)}
    better = {"score": around(7, 1, direction=HIGHER), "score_base": around(9, 1, direction=HIGHER)}

    comparison = of_metrics(scores, better)

    base = named(comparison, "score_base")
    assert base.is_better is None
    assert base.p_value < 0.001
    assert base.caveat == "the base model's own value"
    assert named(comparison, "score").corrected_p_value == named(comparison, "score").p_value
    # Without the metric itself, it is one like any other.
    alone = of_metrics({"score_base": scores["score_base"]}, {"score_base": better["score_base"]})
    assert named(alone, "score_base").is_better is True


def test_values_in_different_units_are_not_subtracted():
    comparison = of_metrics({"latency": around(320, 1, unit="ms")}, {"latency": around(0.3, 0.01, unit="s")})

    metric = named(comparison, "latency")
    assert (metric.difference, metric.interval, metric.p_value, metric.unit) == (None, None, None, "")
    assert metric.caveat == "in ms and in s"


@pytest.mark.parametrize(
    ("name", "a", "b", "caveat"),
    [
        ("win_rate", {"base": PIN}, {"base": BasePin(model_digest=B)}, "against another base model"),
        ("loss", {"base": PIN}, {"base": BasePin(model_digest=B)}, "per token of another base model"),
        ("judge_score", {"base": PIN}, {"base": BasePin(model_digest=B)}, ""),
        ("judge_score", {"config": {"feedback_model": "x"}}, {"config": {"feedback_model": "y"}}, "judged with another judge"),
        ("win_rate", {"config": {"feedback_model": "x"}}, {"config": {}}, ""),
        (
            "win_rate",
            {"config": {"specialization": "x"}},
            {"config": {"specialization": "y"}},
            "judged with another specialisation",
        ),
        ("accuracy", {"config": {"feedback_model": "x"}}, {"config": {"feedback_model": "y"}}, ""),
    ],
)  # fmt: skip
def test_values_by_another_yardstick_are_shown_and_not_judged(name, a, b, caveat):
    unit = "nats/token" if name == "loss" else ""
    before = {"metrics": {name: around(1, 0.1, direction=HIGHER, unit=unit)}}
    after = {"metrics": {name: around(5, 0.1, direction=HIGHER, unit=unit)}}

    metric = named(compared({**before, **a}, {**after, **b}), name)

    assert metric.caveat == caveat
    assert metric.difference == 4
    assert metric.is_better is (None if caveat else True)


# The verdict


def test_the_verdict_says_better_by_what_and_how_sure():
    comparison = of_metrics(
        {"judge_score": around(5.1, 0.5, direction=HIGHER), "loss": Metric(value=2, direction=LOWER)},
        {"judge_score": around(6.4, 0.5, direction=HIGHER), "loss": Metric(value=1, direction=LOWER)},
    )

    assert comparison.verdict == (
        "1.1.0 is better than 1.0.0: judge_score rose from 5.1 to 6.4 (+0.593 to +2.01, p < 0.001); 2 metrics in "
        "common, 1 tested at 95% confidence, p-values after Holm's correction."
    )


def test_the_verdict_says_worse():
    comparison = of_metrics(
        {"latency": around(280, 10, direction=LOWER, unit="ms")},
        {"latency": around(320, 10, direction=LOWER, unit="ms")},
        confidence=0.99,
    )

    assert comparison.verdict == (
        "1.1.0 is worse than 1.0.0: latency rose from 280 to 320 ms (+21.4 to +58.6, p < 0.001); 1 metric in "
        "common, 1 tested at 99% confidence, p-values after Holm's correction."
    )


def test_the_verdict_says_mixed():
    comparison = of_metrics(
        {"x": around(1, 0.1, direction=HIGHER), "y": around(1, 0.1, direction=HIGHER)},
        {"x": around(2, 0.1, direction=HIGHER), "y": around(0, 0.1, direction=HIGHER)},
    )

    assert comparison.verdict.startswith(
        "Mixed: 1.1.0 is better than 1.0.0, as x rose from 1 to 2 (+0.859 to +1.14, p < 0.001), and worse, as y "
        "fell from 1 to 0 (-1.14 to -0.859, p < 0.001); 2 metrics in common"
    )


def test_the_verdict_says_that_it_is_inconclusive_and_why():
    chance = of_metrics({"x": around(1, 1, direction=HIGHER)}, {"x": around(2, 1, direction=HIGHER)})
    untested = of_metrics(
        {"x": Metric(value=1), "y": Metric(value=1)}, {"x": Metric(value=2), "y": Metric(value=1)}
    )
    unknown = of_metrics({"x": around(1, 0.1)}, {"x": around(2, 0.1)})
    same = of_metrics({"x": around(1, 0.1)}, {"x": around(1, 0.1)})
    apart = of_metrics({"x": around(1, 1)}, {"y": around(1, 1)})

    told = "Inconclusive whether 1.1.0 is better than 1.0.0: "
    assert chance.verdict.startswith(
        told
        + "no change beyond chance; the least likely one by chance: x rose from 1 to 2 (-0.414 to +2.41, p = 0.17); "
        "1 metric in common, 1 tested"
    )
    assert untested.verdict == (told + "no shared metric has comparable samples or intervals on both sides.")
    assert unknown.verdict.startswith(
        told
        + "x rose from 1 to 2 (+0.859 to +1.14, p < 0.001), but it is not recorded which direction is better; 1 metric"
    )
    assert same.verdict.startswith(told + "no tested metric changed; 1 metric")
    assert apart.verdict == told + "they share no metric."


def test_the_verdict_tells_close_numbers_apart():
    a, b = Metric(value=2.1041, samples=(2.1040, 2.1042)), Metric(value=2.1032, samples=(2.1031, 2.1033))

    assert "fell from 2.104 to 2.103" in of_metrics({"x": a}, {"x": b}).verdict


def test_a_thousand_metrics_make_a_short_verdict():
    names = [f"metric-{index}" for index in range(1000)]
    a = {name: Metric(value=2.5, samples=(1.0, 2.0, 3.0, 4.0), direction=HIGHER) for name in names}
    b = {name: Metric(value=102.5, samples=(101.0, 102.0, 103.0, 104.0), direction=HIGHER) for name in names}

    comparison = of_metrics(a, b)

    assert all(metric.is_better for metric in comparison.metrics)
    assert "and 997 more; 1,000 metrics in common, 1,000 tested" in comparison.verdict
    assert len(comparison.verdict) < 500


def test_a_name_cannot_break_the_verdict():
    name = "\u202e<b>x</b>\n\n" + "y" * 200
    comparison = of_metrics(
        {name: around(1, 0.1, direction=HIGHER)}, {name: around(2, 0.1, direction=HIGHER)}
    )

    shown = "\N{REPLACEMENT CHARACTER}<b>x</b> " + "y" * 69 + "…"
    assert f": {shown} rose from 1 to 2 (" in comparison.verdict
    assert named(comparison, name).is_better is True


def test_versions_of_different_models_are_told_apart_by_their_models():
    a = version("1.0.0", "advisor", base=PIN, metrics={"x": Metric(value=1)})
    b = version("1.0.0", "seller", base=PIN, metrics={"x": Metric(value=1)}, config={"epochs": 1})

    comparison = compare(a, b)

    assert "whether seller@1.0.0 is better than advisor@1.0.0" in comparison.verdict
    assert comparison.recommendation_reason == (
        "Minor, since the configuration differs (config.epochs); that is, if seller@1.0.0 became a version of "
        "advisor."
    )


# Compatibility


def test_what_is_the_same_fits_and_is_said():
    given = {"base": PIN, "config": {"lora_r": 16.0}, "artifacts": (WEIGHTS,)}

    comparison = compared(given, given)

    assert [(each.aspect, each.is_compatible) for each in comparison.compatibility] == [
        ("base.model_digest", True),
        ("base.tokenizer_digest", True),
        ("base.chat_template_digest", True),
        ("base.context_length", True),
        ("config.lora_r", True),
        ("artifacts", True),
    ]
    assert comparison.recommended_bump is None
    assert comparison.recommendation_reason == "No difference calls for a new version."


@pytest.mark.parametrize("part", ["tokenizer_digest", "chat_template_digest"])
def test_digests_that_differ_do_not_fit_and_unknown_ones_are_said(part: str):
    what = part.removesuffix("_digest").replace("_", " ")
    aspect = f"base.{part}"

    other = compared({"base": BasePin(**{part: A})}, {"base": BasePin(**{part: B})})
    half = compared({"base": BasePin(**{part: A})}, {"base": BasePin()})
    neither = compared({}, {})

    assert finding(other, aspect) == (
        False,
        f"The {what} differs: SHA-256 bbbbbbbbbbbb… in 1.1.0, SHA-256 aaaaaaaaaaaa… in 1.0.0.",
    )
    assert finding(half, aspect) == (True, f"The {what} is not recorded for 1.1.0.")
    assert finding(neither, aspect) == (True, f"The {what} is not recorded for either.")


def test_digests_that_begin_alike_differ():
    a, b = "a" * 63 + "0", "a" * 63 + "1"

    other = compared({"base": BasePin(tokenizer_digest=a)}, {"base": BasePin(tokenizer_digest=b)})

    fits, text = finding(other, "base.tokenizer_digest")
    assert not fits
    assert text.startswith("The tokenizer differs")


def test_the_base_model_goes_by_its_digest_and_by_its_name_only_without():
    def found(a: BasePin, b: BasePin) -> tuple[str, bool, str]:
        first = compared({"base": a}, {"base": b}).compatibility[0]
        return first.aspect, first.is_compatible, first.explanation

    assert found(BasePin(name="x", model_digest=A), BasePin(name="x", model_digest=B)) == (
        "base.model_digest",
        False,
        "The base model differs: x (SHA-256 bbbbbbbbbbbb…) in 1.1.0, x (SHA-256 aaaaaaaaaaaa…) in 1.0.0.",
    )
    assert found(BasePin(name="x", model_digest=A), BasePin(name="/models/x", model_digest=A))[:2] == (
        "base.model_digest",
        True,
    )
    assert found(BasePin(name="x", model_digest=A), BasePin(name="y")) == (
        "base.name",
        False,
        "The base model differs: y (no digest recorded) in 1.1.0, x (SHA-256 aaaaaaaaaaaa…) in 1.0.0.",
    )
    assert found(BasePin(name="x", model_digest=A), BasePin(name="x")) == (
        "base.model_digest",
        True,
        "The base model's digest is not recorded for 1.1.0. Both name x, so it counts as the same.",
    )
    # A tokenizer that differs has a finding of its own.
    assert found(BasePin(name="x", tokenizer_digest=A), BasePin(name="x", tokenizer_digest=B))[1] is True


def test_a_version_without_a_pin_is_named_by_its_configuration():
    comparison = compared({"config": {"base_model": "x"}}, {"base": BasePin(name="y")})

    assert finding(comparison, "base.name")[0] is False


@pytest.mark.parametrize(
    ("a", "b", "fits"),
    [(2048, 1024, False), (1024, 2048, True), (2048, 2048, True), (0, 9, True), (9, 0, True)],
)
def test_a_shorter_context_does_not_fit(a: int, b: int, fits: bool):
    comparison = compared({"base": BasePin(context_length=a)}, {"base": BasePin(context_length=b)})

    assert finding(comparison, "base.context_length")[0] is fits
    assert ("not recorded" in finding(comparison, "base.context_length")[1]) == (not (a and b))


@pytest.mark.parametrize(
    ("a", "b", "fits", "text"),
    [
        (16.0, 32.0, False, "The adapter rank differs: 32 in 1.1.0, 16 in 1.0.0. It fits only where the server admits"),
        (32, 16, True, "The adapter rank differs: 16 in 1.1.0, 32 in 1.0.0."),
        (16, 16.0, True, "Both have the same adapter rank: 16."),
        (None, 16, True, "The adapter rank is not recorded for 1.0.0."),
        ("16", 32, True, "The adapter rank is not recorded for 1.0.0."),
    ],
)  # fmt: skip
def test_a_higher_rank_fits_only_where_it_is_admitted(a, b, fits, text):
    is_compatible, explanation = finding(
        compared({"config": {"lora_r": a}}, {"config": {"lora_r": b}}), "config.lora_r"
    )

    assert is_compatible is fits
    assert explanation.startswith(text)


@pytest.mark.parametrize(
    ("a", "b", "fits", "text"),
    [
        (["x/adapter_model.safetensors"], ["x/adapter_model.safetensors"], True, "Both have an adapter (x/adapter_model.safetensors)."),
        (["x/adapter_model.safetensors"], ["model.safetensors"], False, "1.1.0 has full weights (model.safetensors), 1.0.0 an adapter (x/adapter_model.safetensors)."),
        (["x/adapter_model.safetensors"], ["y/adapter_model.safetensors"], False, "1.1.0 has an adapter (y/adapter_model.safetensors), 1.0.0 an adapter (x/adapter_model.safetensors)."),
        (["model.safetensors"], ["model-1-of-2.safetensors", "model-2-of-2.safetensors"], True, "Both have full weights (model.safetensors)."),
        (["model.safetensors"], ["README.md"], False, "1.1.0 has no weights; 1.0.0 has full weights (model.safetensors)."),
        ([], ["model.safetensors"], True, "1.0.0 has no weights to compare with."),
    ],
)  # fmt: skip
def test_weights_fit_where_the_same_kind_lies_in_the_same_place(a, b, fits, text):
    def files(paths: list[str]) -> dict[str, Any]:
        return {"artifacts": tuple(Artifact(path=path, digest=A, size_bytes=1) for path in paths)}

    assert finding(compared(files(a), files(b)), "artifacts") == (fits, text)


# The recommended bump


def data(digest: str, path: str = "") -> dict[str, Any]:
    return {"lineage": Lineage(dataset_digest=digest, dataset_path=path)}


def files(digest: str, path: str = WEIGHTS.path) -> dict[str, Any]:
    return {"artifacts": (Artifact(path=path, digest=digest, size_bytes=1),)}


@pytest.mark.parametrize(
    ("a", "b", "level", "reason"),
    [
        ({"base": PIN}, {"base": BasePin(model_digest=B)}, Level.MAJOR, "the base model differs"),
        ({"base": BasePin(name="x")}, {"base": BasePin(name="y")}, Level.MAJOR, "the base model differs"),
        ({"base": PIN}, {"base": BasePin(tokenizer_digest=B)}, Level.MAJOR, "the tokenizer differs"),
        ({"base": PIN}, {"base": BasePin(chat_template_digest=B)}, Level.MAJOR, "the chat template differs"),
        ({"base": PIN}, {"base": BasePin(context_length=9)}, Level.MAJOR, "the context is shorter"),
        (files(A), files(A, "model.safetensors"), Level.MAJOR, "the weights are of another kind or in another folder"),
        ({"base": PIN}, {"base": BasePin(context_length=4096)}, Level.MINOR, "the context is longer"),
        ({"config": {"specialization": "x"}}, {"config": {"specialization": "y"}}, Level.MINOR, "the specialisation differs"),
        ({"config": {"lora_r": 8}}, {"config": {"lora_r": 16}}, Level.MINOR, "the adapter rank differs"),
        (data(A, "x"), data(B, "y"), Level.MINOR, "the training data is a different set"),
        (data("", "x"), data("", "y"), Level.MINOR, "the training data is a different set"),
        ({"config": {"o": {"lr": 1}}}, {"config": {"o": {"lr": 2}}}, Level.MINOR, "the configuration differs (config.o.lr)"),
        (data(A, "x"), data(B, "x"), Level.PATCH, "the training data was revised"),
        (data(A), data(B), Level.PATCH, "the training data was revised"),
        ({"config": {"seed": "1"}}, {"config": {"seed": "2"}}, Level.PATCH, "the seed differs"),
        (files(A), files(B), Level.PATCH, "the files differ"),
    ],
)  # fmt: skip
def test_each_difference_calls_for_its_level(a, b, level, reason):
    comparison = compared(a, b)

    assert comparison.recommended_bump is level
    assert comparison.recommendation_reason == f"{level.value.capitalize()}, since {reason}."


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"tags": {"x": "1"}, "description": "a"}, {"metrics": {"x": Metric(value=1)}}),
        (data(A, "x"), data(A, "y")),  # the same data under another name
        (data(A, "x"), data("", "x")),
        ({"base": PIN}, {"base": BasePin(name="/models/base", model_digest=A)}),
        (
            {"config": {"output_dir": "x", "dataset_path": "x", "model_name": "x"}},
            {"config": {"output_dir": "y", "dataset_path": "y", "model_name": "y"}},
        ),
    ],
)
def test_other_differences_call_for_no_new_version(a, b):
    comparison = compared(a, b)

    assert comparison.recommended_bump is None


def test_a_draft_without_weights_has_not_moved_them():
    comparison = compared(files(A), {})

    assert finding(comparison, "artifacts")[0] is False
    assert comparison.recommended_bump is Level.PATCH


def test_the_highest_level_wins_and_names_its_reasons_alone():
    comparison = compared(
        {"base": PIN, "config": {"epochs": 1, "seed": 1}, **files(A)},
        {"base": BasePin(model_digest=B, tokenizer_digest=B), "config": {"epochs": 2, "seed": 2}, **files(B)},
    )

    assert comparison.recommended_bump is Level.MAJOR
    assert (
        comparison.recommendation_reason == "Major, since the base model differs and the tokenizer differs."
    )


def test_many_settings_are_counted():
    comparison = compared({"config": dict.fromkeys("abcdef", 1)}, {"config": dict.fromkeys("abcdef", 2)})

    assert comparison.recommendation_reason.endswith("(config.a, config.b, config.c and 3 more).")


def test_a_version_compared_with_itself_differs_in_nothing():
    metrics = {"x": Metric(value=2, samples=(1, 2, 3), direction=HIGHER)}
    same = version(base=PIN, config={"lora_r": 8}, metrics=metrics, artifacts=(WEIGHTS,))

    comparison = compare(same, same)

    assert comparison.differences == ()
    assert all(each.is_compatible for each in comparison.compatibility)
    assert comparison.recommended_bump is None
    assert comparison.verdict.startswith(
        "Inconclusive whether 1.0.0 (B) is better than 1.0.0 (A): no tested metric changed"
    )


async def test_versions_are_not_compared_on_when_nobody_waits_for_it():
    metrics = {"loss": Metric(value=1.0), "recall": Metric(value=1.0)}
    assert await is_given_up(lambda: of_metrics(metrics, metrics))
