from __future__ import annotations

from neuroweaver.trainer.worker.registration import metrics_of
from neuroweaver.v1 import trainer_pb2 as pb


def test_what_nobody_could_judge_is_not_registered_as_measured():
    result = pb.TrainingResult(loss_before=4.0, loss_after=3.0, perplexity_before=50, perplexity_after=20)
    assert metrics_of(result).keys() == {"loss", "loss_base", "perplexity", "perplexity_base"}


def test_judgements_are_registered_with_their_samples():
    result = pb.TrainingResult(
        samples=[pb.JudgedSample(tuned_score=7.0)],
        win_rate={"wins": 1, "rate": 1.0},
    )
    result.metrics["tuned_score"] = 7.0
    found = metrics_of(result)
    assert (found["judge_score"].value, list(found["judge_score"].samples)) == (7.0, [7.0])
    assert found["win_rate"].value == 1.0
    assert "judge_score_base" not in found
