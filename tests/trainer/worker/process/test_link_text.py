from __future__ import annotations

from neuroweaver.trainer.worker.process import link
from neuroweaver.v1 import trainer_pb2 as pb


def test_what_a_model_writes_reaches_a_trainer_that_keeps_no_nul():
    sample = pb.JudgedSample(prompt="a\0b", tuned_response="fine 🙂")
    event = pb.TrainingEvent(finished=pb.JobFinished(result=pb.TrainingResult(samples=[sample])))
    event.finished.result.metrics["loss"] = 0.5

    link._make_keepable(event)

    (kept,) = event.finished.result.samples
    assert (kept.prompt, kept.tuned_response) == ("a\ufffdb", "fine 🙂")
    assert event.finished.result.metrics["loss"] == 0.5
