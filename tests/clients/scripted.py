"""A whole job as a trainer would tell it: events, the job after them, and the version in the Registry."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from neuroweaver.v1 import registry_pb2, trainer_pb2
from neuroweaver.v1.common_pb2 import Interval

JOB_ID = "01JD3QY8W6K2R5T9V0ZX4M7NBC"
BEGIN = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)


def config(**changes) -> trainer_pb2.TrainingConfig:
    fields = {
        "model_name": "service-advisor",
        "base_model": "smollm2-135m-instruct",
        "specialization": "service_advisor",
        "dataset_path": "builtin:automotive",
        "lora_r": 16,
        "learning_rate": 5e-4,
        "target_kl": 6.0,
        "quantization": trainer_pb2.QUANTIZATION_NF4,
        "target_modules": ["q_proj", "v_proj"],
    }
    return trainer_pb2.TrainingConfig(**{**fields, **changes})


class Script:
    """Events with rising sequences and a clock of their own."""

    def __init__(self) -> None:
        self.events: list[trainer_pb2.TrainingEvent] = []
        self.now = BEGIN

    def add(self, **event) -> trainer_pb2.TrainingEvent:
        made = trainer_pb2.TrainingEvent(sequence=len(self.events) + 1, job_id=JOB_ID, **event)
        made.time.FromDatetime(self.now)
        self.events.append(made)
        return made

    def state(self, before: str, after: str, attempt: int = 1) -> None:
        value = trainer_pb2.JobState.Value
        self.add(
            state_changed=trainer_pb2.StateChanged(
                from_state=value(f"JOB_STATE_{before}"), to_state=value(f"JOB_STATE_{after}"), attempt=attempt
            )
        )

    def stage(self, stage, description, seconds, steps=(), **metrics) -> None:
        self.add(stage_started=trainer_pb2.StageStarted(stage=stage, description=description))
        for number, step in enumerate(steps, 1):
            self.now += timedelta(seconds=seconds / max(1, len(steps)))
            eta = Duration()
            eta.FromTimedelta(timedelta(seconds=seconds * (1 - number / len(steps))))
            self.add(
                progress=trainer_pb2.Progress(
                    stage=stage, step=number, total_steps=len(steps), eta=eta, **step
                )
            )
        duration = Duration()
        duration.FromTimedelta(timedelta(seconds=seconds))
        self.add(stage_finished=trainer_pb2.StageFinished(stage=stage, duration=duration, metrics=metrics))


SAMPLES = [
    (
        "My car shudders when I brake from motorway speed. What could it be?",
        "Uneven discs are the usual cause; have them measured and replaced with new pads if they are out of tolerance.",
        "The car is shaking because of the brakes. You should check the brakes. The brakes are important for the car. The brakes are important for the car.",
        "That shudder usually means the front discs are worn unevenly. Please book a brake inspection: we measure disc thickness and run-out, and replace discs and pads as a set if they are out of tolerance. Until then, leave more distance.",
        2.9, 7.6, "WIN",
    ),
    (
        "How often should I change the engine oil in a 2021 petrol hatchback?",
        "Every 15,000 km or once a year, whichever comes first, with the grade in the handbook.",
        "You should change the oil every 5,000 miles.",
        "Follow the interval in your handbook, for most petrol hatchbacks of that year 15,000 km or twelve months, whichever comes first. We use the grade the maker asks for and note it in your service record.",
        4.8, 7.9, "WIN",
    ),
    (
        "Is it safe to drive with the battery light on?",
        "Only a short way: the alternator may have stopped charging. Switch off consumers and have it checked today.",
        "No. The battery light means that the charging system has a problem and the car can stop. Have it checked soon.",
        "Please have your car checked. Our workshop is happy to help you with your car and the battery light.",
        6.9, 4.1, "LOSS",
    ),
    (
        "What does a wheel alignment include?",
        "Toe, camber and caster measured and set.",
        "",
        "We measure toe, camber and caster on all four wheels and set what can be set. You get the print-out.",
        0.4, 8.2, "WIN",
    ),
    (
        "Can I wait while you change my tyres?",
        "Yes, about an hour.",
        "Yes, you can wait.",
        "Yes, you can wait.",
        5.5, 5.5, "TIE",
    ),
    (
        "Why does my clutch slip uphill?",
        "A worn disc.",
        "I am not sure.",
        "It may be worn.",
        None, None, "UNSPECIFIED",
    ),
]  # fmt: skip


def sample(prompt, reference, base, tuned, base_score, tuned_score, verdict) -> trainer_pb2.JudgedSample:
    return trainer_pb2.JudgedSample(
        prompt_id=prompt[:12],
        prompt=prompt,
        reference=reference,
        base_response=base,
        tuned_response=tuned,
        base_score=base_score,
        tuned_score=tuned_score,
        verdict=trainer_pb2.Verdict.Value(f"VERDICT_{verdict}"),
        reason="Similar to the reference and polite." if verdict == "WIN" else "",
    )


def result(**changes) -> trainer_pb2.TrainingResult:
    fields = {
        "model_id": "service-advisor",
        "version": "1.0.0",
        "rlaif_outcome": trainer_pb2.RLAIF_OUTCOME_APPLIED,
        "loss_before": 2.914,
        "loss_after": 2.071,
        "perplexity_before": math.exp(2.914),
        "perplexity_after": math.exp(2.071),
        "reward_model": trainer_pb2.RewardModelQuality(
            accuracy=0.739,
            accuracy_interval=Interval(lower=0.597, upper=0.844, confidence=0.95),
            length_rule_accuracy=0.587,
            train_pairs=184,
            heldout_pairs=46,
        ),
        "policy_optimization": trainer_pb2.PolicyOptimization(
            reward_first=-0.118, reward_last=0.842, kl_last=4.31, steps=24
        ),
        "win_rate": trainer_pb2.WinRate(
            wins=13,
            losses=4,
            ties=2,
            missing=1,
            rate=14 / 19,
            interval=Interval(lower=0.512, upper=0.882, confidence=0.95),
        ),
        "samples": [sample(*each) for each in SAMPLES],
        "judge": "embedded",
        "stage_seconds": {"SFT": 96.0, "PPO": 141.0},
        "artifacts": {
            "adapter/adapter_model.safetensors": "5a" * 32,
            "adapter/adapter_config.json": "c3" * 32,
        },
    }
    return trainer_pb2.TrainingResult(**{**fields, **changes})


def successful() -> list[trainer_pb2.TrainingEvent]:
    noise = random.Random(7)
    stage = trainer_pb2.Stage.Value
    script = Script()
    script.state("UNSPECIFIED", "QUEUED")
    script.state("QUEUED", "RUNNING")
    script.stage(
        stage("STAGE_PREPARING"), "224 rows, 22 held out; smollm2-135m-instruct in nf4", 8.4, rows=224.0
    )
    losses = [
        {
            "loss": 1.35 + 1.65 * math.exp(-step / 14) + noise.gauss(0, 0.09),
            "tokens_per_second": 310 + noise.gauss(0, 12),
        }
        for step in range(52)
    ]
    script.stage(
        stage("STAGE_SFT"), "2 epochs over 202 rows", 96.2, losses, loss_before=2.914, loss_after=2.071
    )
    speeds = [{"tokens_per_second": 150 + noise.gauss(0, 5)} for _ in range(12)]
    script.stage(stage("STAGE_RESPONSES"), "4 responses to each of 24 prompts", 44.9, speeds)
    script.stage(stage("STAGE_FEEDBACK"), "96 responses to be judged by embedded", 6.1, [{}] * 96)
    pairs = [{"loss": 0.45 + 0.26 * math.exp(-step / 12) + noise.gauss(0, 0.03)} for step in range(46)]
    script.stage(stage("STAGE_REWARD_MODEL"), "184 pairs, 46 held out", 31.7, pairs, accuracy=0.739)
    rollouts = [
        {
            "loss": 0.2 + noise.gauss(0, 0.05),
            "reward": -0.2 + 1.05 * (1 - math.exp(-step / 9)) + noise.gauss(0, 0.1),
            "kl": 4.4 * (1 - math.exp(-step / 8)) + abs(noise.gauss(0, 0.25)),
            "tokens_per_second": 96 + noise.gauss(0, 4),
            "metrics": {"clip_fraction": 0.1},
        }
        for step in range(24)
    ]
    script.stage(stage("STAGE_PPO"), "24 rollouts of 16 responses", 141.3, rollouts)
    script.add(
        notice=trainer_pb2.Notice(
            reason="ROWS_TRUNCATED", message="3 of 224 rows are longer than 256 tokens and were cut."
        )
    )
    script.stage(
        stage("STAGE_VALIDATION"), "Perplexity, and 20 prompts answered by both models", 73.8, [{}] * 20
    )
    script.stage(stage("STAGE_REGISTERING"), "Uploads 2 files", 2.2)
    script.state("RUNNING", "SUCCEEDED")
    script.add(finished=trainer_pb2.JobFinished(state=trainer_pb2.JOB_STATE_SUCCEEDED, result=result()))
    return script.events


def failed() -> list[trainer_pb2.TrainingEvent]:
    script = Script()
    script.state("QUEUED", "RUNNING")
    script.stage(trainer_pb2.STAGE_PREPARING, "224 rows", 3.0)
    script.add(stage_started=trainer_pb2.StageStarted(stage=trainer_pb2.STAGE_SFT, description="2 epochs"))
    for step, loss in ((1, 3.0), (2, 2.8)):
        script.add(
            progress=trainer_pb2.Progress(stage=trainer_pb2.STAGE_SFT, step=step, total_steps=9, loss=loss)
        )
    script.state("RUNNING", "FAILED")
    script.add(finished=trainer_pb2.JobFinished(state=trainer_pb2.JOB_STATE_FAILED, failure=failure()))
    return script.events


def failure() -> trainer_pb2.Failure:
    return trainer_pb2.Failure(
        reason="OUT_OF_MEMORY",
        message="The worker needed more memory than there is.",
        stage=trainer_pb2.STAGE_SFT,
        is_resumable=True,
    )


def job(events: list[trainer_pb2.TrainingEvent], **changes) -> trainer_pb2.TrainingJob:
    """The job after these events."""
    finished = events[-1].finished
    fields = {
        "job_id": JOB_ID,
        "config": config(),
        "state": finished.state or trainer_pb2.JOB_STATE_RUNNING,
        "stage": trainer_pb2.STAGE_REGISTERING if finished.HasField("result") else trainer_pb2.STAGE_SFT,
        "attempt": 1,
        "last_sequence": events[-1].sequence,
        "dataset_digest": "9e" * 32,
    }
    made = trainer_pb2.TrainingJob(**{**fields, **changes})
    made.create_time.FromDatetime(BEGIN - timedelta(seconds=1))
    made.start_time.FromDatetime(BEGIN)
    if finished.state:
        made.end_time.CopyFrom(events[-1].time)
    if finished.HasField("result"):
        made.result.CopyFrom(finished.result)
    if finished.HasField("failure"):
        made.failure.CopyFrom(finished.failure)
    return made


def version(number: str = "1.0.0", **changes) -> registry_pb2.ModelVersion:
    fields = {
        "model_id": "service-advisor",
        "version": number,
        "state": registry_pb2.VERSION_STATE_VALIDATED,
        "description": "Trained by a job.",
        "aliases": ["candidate"],
        "metrics": {
            "win_rate": registry_pb2.Metric(
                value=0.74, interval=Interval(lower=0.51, upper=0.88, confidence=0.95)
            )
        },
        "base": registry_pb2.BasePin(
            name="smollm2-135m-instruct",
            model_digest="1b" * 32,
            tokenizer_digest="2c" * 32,
            chat_template_digest="3d" * 32,
        ),
        "lineage": registry_pb2.Lineage(
            training_job_id=JOB_ID,
            dataset_digest="9e" * 32,
            dataset_path="builtin:automotive",
            software_version="0.1.0",
            trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        ),
        "artifacts": [
            registry_pb2.Artifact(path="adapter/adapter_config.json", digest="c3" * 32, size_bytes=912),
            registry_pb2.Artifact(
                path="adapter/adapter_model.safetensors", digest="5a" * 32, size_bytes=19_568_312
            ),
        ],
    }
    return registry_pb2.ModelVersion(**{**fields, **changes})
