"""Jobs, templates and data sets as messages."""

from __future__ import annotations

from typing import Final

from neuroweaver.trainer.control import admission
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.rows import Severity
from neuroweaver.trainer.data.specialization import Specialization, system_prompts
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens
from neuroweaver.trainer.domain.job import Job
from neuroweaver.v1 import trainer_pb2 as pb

DEFAULT_MAX_SEQ_LENGTH: Final = 2048


def to_proto(job: Job) -> pb.TrainingJob:
    answer = pb.TrainingJob(
        job_id=job.job_id,
        config=job.config,
        state=job.state,
        stage=job.stage,
        progress=job.progress,
        attempt=job.attempt,
        failure=job.failure,
        result=job.result,
        last_sequence=job.last_sequence,
        dataset_digest=job.dataset_digest,
    )
    answer.create_time.FromDatetime(job.create_time)
    if job.start_time is not None:
        answer.start_time.FromDatetime(job.start_time)
    if job.end_time is not None:
        answer.end_time.FromDatetime(job.end_time)
    return answer


def template(specialization: Specialization) -> pb.SpecializationTemplate:
    return pb.SpecializationTemplate(
        id=specialization.id,
        title=specialization.title,
        description=specialization.description,
        system_prompt=specialization.system_prompt,
        rubric=[
            pb.RubricCriterion(name=each.name, description=each.description, weight=each.weight)
            for each in specialization.rubric
        ],
        evaluation_prompts=[
            pb.EvaluationPrompt(id=each.id, prompt=each.prompt, reference=each.reference)
            for each in specialization.evaluation_prompts
        ],
    )


def validate_dataset(
    request: pb.ValidateDatasetRequest, premises: admission.Premises
) -> pb.ValidateDatasetResponse:
    """What a job would read; blocks for the disk. Raises InvalidArgument."""
    inspection = admission.inspect_dataset(request.dataset_path, request.specialization, premises)
    answer = pb.ValidateDatasetResponse(
        is_usable=inspection.is_usable,
        format=max(inspection.layouts, key=lambda name: inspection.layouts[name], default=""),
        rows=inspection.rows,
        usable_rows=inspection.usable,
        findings=[
            pb.DatasetFinding(
                line=each.line,
                field=each.column_or_field,
                is_error=each.severity is Severity.ERROR,
                reason=each.reason,
            )
            for each in inspection.findings
        ],
        digest=inspection.digest,
    )
    if request.base_model and inspection.usable:
        base = admission.find_base_model(request.base_model, premises)
        examples = dataset.iterate(
            inspection.path, system_prompts=system_prompts(), specialization=request.specialization
        )
        limit = request.max_seq_length or DEFAULT_MAX_SEQ_LENGTH
        _add_counts(answer, count_tokens(base, examples, limit, premises.home))
    return answer


def _add_counts(answer: pb.ValidateDatasetResponse, count: TokenCount) -> None:
    answer.total_tokens = count.total
    answer.trained_tokens = count.trained
    answer.longest_row_tokens = count.longest
    answer.truncated_rows = count.truncated
    answer.preview.extend(
        pb.DatasetSegment(text=text, is_trained=is_trained) for text, is_trained in count.preview
    )
