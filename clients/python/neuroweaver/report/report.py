"""A job as one self-contained HTML page: its result, how it went, and commands to explore further."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format

from neuroweaver.client.connection import Client
from neuroweaver.client.text import duration, number
from neuroweaver.client.training_history import History, StageHistory, at, stage_title, state_name
from neuroweaver.report.curves import SMOOTHED_FROM, Curve, MissingLibrary, curves_of, to_svg, write_png
from neuroweaver.report.outcome import counted, interval_line, verdict
from neuroweaver.v1 import registry_pb2 as registry
from neuroweaver.v1 import trainer_pb2 as trainer

__all__ = ["MissingLibrary", "Report", "further", "render", "write"]


@dataclass(frozen=True)
class Report:
    """What the page is made of. version: None if the Registry could not be asked."""

    job: trainer.TrainingJob
    history: History
    version: registry.ModelVersion | None
    trainer_address: str
    registry_address: str

    @classmethod
    def gather(cls, client: Client, job: trainer.TrainingJob) -> Report:
        """Replays the job's history. Raises grpc.RpcError if the Trainer cannot be asked."""
        history = History.of(client.watch_training(job.job_id))
        return cls(
            job=job,
            history=history,
            version=_version(client, job.result) if job.HasField("result") else None,
            trainer_address=client.address("trainer"),
            registry_address=client.address("registry"),
        )


def write(report: Report, page: Path, png: Path | None = None) -> list[Path]:
    """The files written. Raises MissingLibrary and OSError."""
    curves = curves_of(report.history, report.job.config)
    html = render(report, curves)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(html, encoding="utf-8")
    if png is None or not curves:
        return [page]
    png.parent.mkdir(parents=True, exist_ok=True)
    write_png(curves, png)
    return [page, png]


def render(report: Report, curves: Sequence[Curve]) -> str:
    # Not for the other commands that know this module.
    import jinja2  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    job, history = report.job, report.history
    result = job.result if job.HasField("result") else None
    return environment.get_template("report.html.jinja").render(
        job=job,
        result=result,
        state=state_name(job.state),
        title=f"{result.model_id} {result.version}" if result else job.config.model_name,
        verdict=_headline(job, result),
        win_rate=result.win_rate if result and counted(result.win_rate) else None,
        tiles=_tiles(result) if result else [],
        # Drawn by matplotlib from numbers: the only markup that is not escaped.
        is_smoothed=any(len(curve.values) >= SMOOTHED_FROM for curve in curves),
        curves=[(curve.title, Markup(to_svg(curve))) for curve in curves],  # noqa: S704
        stages=_timeline(history),
        total=duration(sum(stage.duration_s for stage in history.stages.values())),
        notices=history.notices,
        samples=[_sample(sample) for sample in result.samples] if result else [],
        lineage=_lineage(report),
        files=_files(report),
        config=_config(job.config),
        commands=further(report),
        written=f"{at(job.end_time):%Y-%m-%d %H:%M} UTC" if job.HasField("end_time") else "",
    )


def further(report: Report) -> list[tuple[str, list[str]]]:
    """Headings and lines for a shell."""
    job_id = shlex.quote(report.job.job_id)
    body = shlex.quote(f'{{"job_id": "{report.job.job_id}"}}')
    get_job = "neuroweaver.v1.TrainerService/GetTrainingJob"
    lines = [
        ("The command line", [f"neuroweaver train show {job_id}", f"neuroweaver train logs {job_id}"]),
        ("grpcurl", [
            f"grpcurl -plaintext {report.trainer_address} list",
            f"grpcurl -plaintext -d {body} {report.trainer_address} {get_job}",
        ]),
        ("buf curl", [
            f"buf curl --protocol grpc --http2-prior-knowledge -d {body} http://{report.trainer_address}/{get_job}",
        ]),
    ]  # fmt: skip
    if report.job.HasField("result"):
        result = report.job.result
        model, version = result.model_id, result.version
        lines[0][1].append(f"neuroweaver model show {shlex.quote(f'{model}@{version}')}")
        lines[0][1].append(f"neuroweaver model download {shlex.quote(f'{model}@{version}')}")
        named = shlex.quote(f'{{"model_id": "{model}", "version": "{version}"}}')
        get_version = "neuroweaver.v1.RegistryService/GetModelVersion"
        lines[1][1].append(f"grpcurl -plaintext -d {named} {report.registry_address} {get_version}")
    return lines


def _version(client: Client, result: trainer.TrainingResult) -> registry.ModelVersion | None:
    try:
        return client.version(result.model_id, result.version)
    except grpc.RpcError:
        return None


def _headline(job: trainer.TrainingJob, result: trainer.TrainingResult | None) -> tuple[str, str]:
    if result:
        return verdict(result.win_rate)
    if job.HasField("failure"):
        failure = job.failure
        return f"The job failed in {stage_title(failure.stage)}", f"{failure.message} ({failure.reason})"
    return f"The job is {state_name(job.state).lower()}", f"Its last stage was {stage_title(job.stage)}."


def _tiles(result: trainer.TrainingResult) -> list[tuple[str, str, str]]:
    """Names, values and what stands below them."""
    loss = f"loss {number(result.loss_before)} → {number(result.loss_after)} nats per token"
    perplexity = f"{number(result.perplexity_before)} → {number(result.perplexity_after)}"
    tiles = [("Perplexity on held-out rows", perplexity, loss)]
    base = [sample.base_score for sample in result.samples if sample.HasField("base_score")]
    tuned = [sample.tuned_score for sample in result.samples if sample.HasField("tuned_score")]
    if base and tuned:
        means = f"{sum(base) / len(base):.1f} → {sum(tuned) / len(tuned):.1f}"
        note = f"of 10, base → tuned, {len(base)} and {len(tuned)} answers"
        tiles.append(("Mean judged score", means, note))
    if result.HasField("reward_model"):
        quality = result.reward_model
        note = (
            f"{interval_line(quality.accuracy_interval)} on {quality.heldout_pairs} held-out pairs; "
            f"always picking the longer answer: {quality.length_rule_accuracy:.0%}"
        )
        tiles.append(("Reward model accuracy", f"{quality.accuracy:.0%}", note))
    if result.HasField("policy_optimization"):
        ppo = result.policy_optimization
        stopped = f"; stopped early: {ppo.stop_reason}" if ppo.stop_reason else ""
        note = f"KL {number(ppo.kl_last)} nats per response after {ppo.steps} steps{stopped}"
        tiles.append(("PPO reward", f"{number(ppo.reward_first)} → {number(ppo.reward_last)}", note))
    return tiles


def _timeline(history: History) -> list[dict[str, Any]]:
    """Stages with their place on a line from 0 to 100 %."""
    total = sum(stage.duration_s for stage in history.stages.values()) or 1.0
    rows, start_s = [], 0.0
    for stage in history.in_order():
        rows.append(
            {
                "title": stage_title(stage.stage),
                "description": stage.description,
                "left": f"{100 * start_s / total:.2f}",
                "width": f"{100 * stage.duration_s / total:.2f}",
                "duration": _duration(stage),
                "is_finished": stage.is_finished,
            }
        )
        start_s += stage.duration_s
    return rows


def _duration(stage: StageHistory) -> str:
    if not stage.is_finished:
        return "not finished"
    return "reused" if stage.is_reused and not stage.duration_s else duration(stage.duration_s)


_VERDICTS: Final = {
    trainer.VERDICT_WIN: ("tuned won", "win"),
    trainer.VERDICT_LOSS: ("base won", "loss"),
    trainer.VERDICT_TIE: ("tie", "tie"),
}


def _sample(sample: trainer.JudgedSample) -> dict[str, Any]:
    label, style = _VERDICTS.get(sample.verdict, ("no verdict", "none"))
    has_base, has_tuned = sample.HasField("base_score"), sample.HasField("tuned_score")
    return {
        "prompt": sample.prompt,
        "reference": sample.reference,
        "reason": sample.reason,
        "verdict": label,
        "style": style,
        "answers": [
            ("Base", sample.base_response, f"{sample.base_score:.1f}" if has_base else "none"),
            ("Tuned", sample.tuned_response, f"{sample.tuned_score:.1f}" if has_tuned else "none"),
        ],
    }


def _lineage(report: Report) -> list[tuple[str, str]]:
    job = report.job
    facts = [
        ("Model", f"{job.result.model_id}@{job.result.version}" if job.HasField("result") else ""),
        ("Training job", job.job_id),
        ("Base model", job.config.base_model),
        ("Specialisation", job.config.specialization),
        ("Data", job.config.dataset_path),
        ("Data SHA-256", job.dataset_digest),
        ("Judge", job.result.judge),
    ]
    if report.version:
        base, lineage = report.version.base, report.version.lineage
        facts += [
            ("Base weights SHA-256", base.model_digest),
            ("Tokenizer SHA-256", base.tokenizer_digest),
            ("Chat template SHA-256", base.chat_template_digest),
            ("Created by", f"NeuroWeaver {lineage.software_version}" if lineage.software_version else ""),
            ("Trace", lineage.trace_id),
        ]
    return [(name, value) for name, value in facts if value]


def _files(report: Report) -> list[tuple[str, str, str]]:
    """Paths, sizes and digests."""
    if report.version and report.version.artifacts:
        return [
            (artifact.path, _size(artifact.size_bytes), artifact.digest)
            for artifact in report.version.artifacts
        ]
    return [(path, "", digest) for path, digest in sorted(report.job.result.artifacts.items())]


def _size(size_bytes: int) -> str:
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:.1f} MB"


def _config(config: trainer.TrainingConfig) -> list[tuple[str, str]]:
    fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return [(name, _written(value)) for name, value in fields.items()]


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return number(value) if isinstance(value, float) else str(value)
