from __future__ import annotations

import io

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from rich.console import Console

from neuroweaver.cli.model import comparison_view
from neuroweaver.cli.model.comparison_view import judgement
from neuroweaver.v1 import registry_pb2 as pb
from neuroweaver.v1.common_pb2 import Interval

HIGHER, LOWER = pb.METRIC_DIRECTION_HIGHER_IS_BETTER, pb.METRIC_DIRECTION_LOWER_IS_BETTER


def metric(name="accuracy", a=0.5, b=0.6, lower=None, upper=None, p=None, **more) -> pb.MetricDifference:
    fields = {"name": name, "a": a, "b": b, "direction": HIGHER, **more}
    if lower is not None:
        fields["interval"] = Interval(lower=lower, upper=upper, confidence=0.95)
    if a is not None and b is not None:
        fields.setdefault("difference", b - a)
    return pb.MetricDifference(corrected_p_value=p, **fields)


def difference(path, a=None, b=None) -> pb.FieldDifference:
    found = pb.FieldDifference(path=path)
    for side, value in (("a", a), ("b", b)):
        if value is not None:
            getattr(found, side).CopyFrom(json_format.ParseDict(value, Value()))
    return found


def shown(found: pb.ModelComparison, width=80) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(comparison_view.picture(found))
    return console.export_text()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


BETTER = metric("judge_score", 5.62, 6.91, 0.85, 1.73, 0.0001, is_better=True)
SLOWER = metric("latency", 210.0, 268.0, 41.0, 75.0, 0.002, is_better=False, direction=LOWER, unit="ms")


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (BETTER, "better"),
        (SLOWER, "worse"),
        (metric(a=0.5, b=0.5), "same"),
        (metric(a=None), "only in B"),
        (metric(b=None), "only in A"),
        (metric(), "no test"),
        (metric(lower=-0.1, upper=0.3, p=0.4), "chance"),
        (metric(lower=0.01, upper=0.3, p=0.12), "chance"),
        (metric(lower=0.05, upper=0.3, p=0.01, direction=0), "no direction"),
        (metric(lower=0.05, upper=0.3, p=0.01, caveat="judged with another judge"), "not judged"),
    ],
)
def test_a_metric_is_judged_only_where_it_can_be(found, word):
    assert judgement(found) == word


def test_the_arrow_says_where_the_value_went_and_the_word_whether_that_is_good():
    faster = metric("latency", 268.0, 210.0, -75.0, -41.0, 0.002, is_better=True, direction=LOWER)

    text = shown(pb.ModelComparison(metrics=[BETTER, SLOWER]))

    assert "↑ better" in row(text, "judge_score")
    assert "↑ worse" in row(text, "latency (ms)")
    assert "↓ better" in row(shown(pb.ModelComparison(metrics=[faster])), "latency")


def test_numbers_are_shown_as_finely_as_they_differ():
    text = shown(
        pb.ModelComparison(
            metrics=[
                metric("coarse", 1234.0, 1334.0),
                metric("fine", 0.81234, 0.81271),
                metric("finest", 0.8, 0.8 + 3e-9),
            ]
        )
    )

    assert row(text, "coarse").split()[1:4] == ["1,234", "1,334", "+100"]
    assert row(text, "fine ").split()[1:4] == ["0.81234", "0.81271", "+0.00037"]
    assert row(text, "finest").split()[3] == "+3e-09"


def test_the_whole_comparison_fits_into_80_columns_with_the_verdict_first():
    found = pb.ModelComparison(
        verdict="1.1.0 is better than 1.0.0: judge_score rose from 5.62 to 6.91 (+0.85 to +1.73, p < 0.001).",
        a=pb.ModelVersion(
            model_id="advisor", version="1.0.0", state=pb.VERSION_STATE_DEPLOYED, aliases=["production"]
        ),
        b=pb.ModelVersion(model_id="advisor", version="1.1.0", state=pb.VERSION_STATE_TRAINED),
        metrics=[
            BETTER,
            SLOWER,
            metric("a_rather_long_metric_name/of_somebody", -0.0312, 0.04121, -0.1, 0.2, 0.51),
        ],
        differences=[
            difference("config.lora_r", 8, 16),
            difference("config.target_modules", b=["q_proj", "v_proj"]),
            difference("lineage.dataset_digest", "a" * 64, "b" * 64),
        ],
        compatibility=[
            pb.CompatibilityFinding(aspect="base.model_digest", is_compatible=True, explanation="Same base."),
            pb.CompatibilityFinding(
                aspect="config.lora_r", explanation="B has rank 16, A rank 8: " + "long " * 20
            ),
        ],
        recommended_bump=pb.BUMP_LEVEL_MINOR,
        recommendation_reason="Minor, since the adapter's rank is another.",
    )

    text = shown(found)

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("1.1.0 is better than 1.0.0")
    assert "advisor@1.0.0  DEPLOYED  production" in text
    score = " ".join(row(text, "judge_score").split())
    assert score == "judge_score 5.62 6.91 +1.29 +0.85 to +1.73 <0.001 ↑ better"
    assert row(text, "config.lora_r").split() == ["config.lora_r", "8", "16"]
    assert row(text, "config.target_modules").split() == ["config.target_modules", "-", "q_proj,", "v_proj"]
    assert f"{'a' * 12}…" in row(text, "lineage.dataset_digest")
    assert "✓ fits" in row(text, "base.model_digest")
    assert "✗ does not fit" in text
    assert "Recommended bump: Minor, since the adapter's rank is another." in text


def test_why_values_are_not_judged_is_told():
    text = shown(
        pb.ModelComparison(
            metrics=[metric("loss_base", caveat="what the base model reached"), metric("f1"), metric("f2")]
        )
    )

    assert "not judged: loss_base is what the base model reached" in text
    assert text.count("no test: a test needs samples or an interval in both versions") == 1


def test_two_versions_alike_say_so_in_few_lines():
    text = shown(
        pb.ModelComparison(verdict="They have no metric in common.", recommendation_reason="Nothing differs.")
    )

    assert text.splitlines()[-1] == "Nothing differs."
    assert "METRIC" not in text
    assert "DIFFERENCE" not in text


def test_what_a_version_says_of_itself_cannot_steer_the_terminal():
    found = pb.ModelComparison(
        verdict="\x1b[2Jx",
        metrics=[metric("m\x1b[31m", unit="\x07", caveat="\x1b]0;t")],
        differences=[difference("tags.\x1b[2J", "\x1b[2J", "fine")],
        compatibility=[pb.CompatibilityFinding(aspect="\x1b", explanation="\x9b2J")],
    )

    assert not {"\x1b", "\x07", "\x9b"} & set(shown(found))
