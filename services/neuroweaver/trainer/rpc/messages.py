"""Jobs, templates and data sets as messages."""

from __future__ import annotations

from neuroweaver.mesh.wire.clock import timestamp
from neuroweaver.trainer.control.admission import Validation
from neuroweaver.trainer.data.rows import Severity
from neuroweaver.trainer.data.specialization import Specialization
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


def from_validation(validation: Validation) -> pb.ValidateDatasetResponse:
    inspection, count = validation.inspection, validation.count
    return pb.ValidateDatasetResponse(
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
        total_tokens=count.total,
        trained_tokens=count.trained,
        longest_row_tokens=count.longest,
        truncated_rows=count.truncated,
        preview=[pb.DatasetSegment(text=text, is_trained=is_trained) for text, is_trained in count.preview],
    )
