"""Jobs, templates and data sets as messages."""

from __future__ import annotations

from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.trainer.control.admission import Validation
from neuroweaver.trainer.data.rows import Severity
from neuroweaver.trainer.data.specialization import Specialization
from neuroweaver.trainer.domain.job import Job
from neuroweaver.v1 import trainer_pb2 as pb


def to_proto(job: Job) -> pb.TrainingJob:
    return message_of(pb.TrainingJob, job)


def template(specialization: Specialization) -> pb.SpecializationTemplate:
    return message_of(
        pb.SpecializationTemplate,
        specialization,
        rubric=[message_of(pb.RubricCriterion, criterion) for criterion in specialization.rubric],
        evaluation_prompts=[
            message_of(pb.EvaluationPrompt, prompt) for prompt in specialization.evaluation_prompts
        ],
    )


def from_validation(validation: Validation) -> pb.ValidateDatasetResponse:
    inspection, count = validation.inspection, validation.count
    return message_of(
        pb.ValidateDatasetResponse,
        inspection,
        format=max(inspection.layouts, key=lambda name: inspection.layouts[name], default=""),
        usable_rows=inspection.usable,
        findings=[
            message_of(
                pb.DatasetFinding,
                finding,
                field=finding.column_or_field,
                is_error=finding.severity is Severity.ERROR,
            )
            for finding in inspection.findings
        ],
        total_tokens=count.total,
        trained_tokens=count.trained,
        longest_row_tokens=count.longest,
        truncated_rows=count.truncated,
        preview=[pb.DatasetSegment(text=text, is_trained=is_trained) for text, is_trained in count.preview],
    )
