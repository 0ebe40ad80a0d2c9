"""Jobs, templates and data sets as messages."""

from __future__ import annotations

from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.trainer.control import admission
from neuroweaver.trainer.data import dataset
from neuroweaver.trainer.data.rows import Severity
from neuroweaver.trainer.data.specialization import Specialization, system_prompts
from neuroweaver.trainer.data.tokens import TokenCount, count_tokens
from neuroweaver.trainer.domain.config import DEFAULTS
from neuroweaver.trainer.domain.job import Job
from neuroweaver.v1 import trainer_pb2 as pb


def to_proto(job: Job) -> pb.TrainingJob:
    return pb.TrainingJob(
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
        create_time=timestamp(job.create_time),
        start_time=timestamp(job.start_time),
        end_time=timestamp(job.end_time),
    )


def template(specialization: Specialization) -> pb.SpecializationTemplate:
    return pb.SpecializationTemplate(
        id=specialization.id,
        title=specialization.title,
        description=specialization.description,
        system_prompt=specialization.system_prompt,
        rubric=[
            pb.RubricCriterion(
                name=criterion.name, description=criterion.description, weight=criterion.weight
            )
            for criterion in specialization.rubric
        ],
        evaluation_prompts=[
            pb.EvaluationPrompt(id=prompt.id, prompt=prompt.prompt, reference=prompt.reference)
            for prompt in specialization.evaluation_prompts
        ],
    )


def validate_dataset(
    request: pb.ValidateDatasetRequest, capabilities: admission.ServerCapabilities
) -> pb.ValidateDatasetResponse:
    """What a job would read; blocks for the disk. Raises InvalidArgument."""
    inspection = admission.inspect_dataset(request.dataset_path, request.specialization, capabilities)
    answer = pb.ValidateDatasetResponse(
        is_usable=inspection.is_usable,
        format=max(inspection.layouts, key=lambda name: inspection.layouts[name], default=""),
        rows=inspection.rows,
        usable_rows=inspection.usable,
        findings=[
            pb.DatasetFinding(
                line=finding.line,
                field=finding.column_or_field,
                is_error=finding.severity is Severity.ERROR,
                reason=finding.reason,
            )
            for finding in inspection.findings
        ],
        digest=inspection.digest,
    )
    if request.base_model and inspection.usable:
        base = admission.find_base_model(request.base_model, capabilities)
        examples = dataset.Reading(
            inspection.path, system_prompts=system_prompts(), specialization=request.specialization
        )
        limit = request.max_seq_length or DEFAULTS.max_seq_length
        _add_counts(answer, count_tokens(base, examples, limit, capabilities.home))
    return answer


def _add_counts(answer: pb.ValidateDatasetResponse, count: TokenCount) -> None:
    answer.total_tokens = count.total
    answer.trained_tokens = count.trained
    answer.longest_row_tokens = count.longest
    answer.truncated_rows = count.truncated
    answer.preview.extend(
        pb.DatasetSegment(text=text, is_trained=is_trained) for text, is_trained in count.preview
    )
