from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from neuroweaver.mesh.wire.messages import message_of
from neuroweaver.v1 import trainer_pb2 as pb


@dataclass(frozen=True)
class Record:
    job_id: str
    attempt: int
    create_time: datetime
    end_time: datetime | None
    elsewhere: str


def test_a_message_takes_the_values_of_its_names_and_those_given():
    now = datetime(2026, 1, 1, 2, 3, 4, 567_890, UTC)
    record = Record("job", 2, now, None, "not of the message")

    message = message_of(pb.TrainingJob, record, attempt=3, dataset_digest="digest")

    assert message.job_id == "job"
    assert message.attempt == 3
    assert message.dataset_digest == "digest"
    assert message.create_time.ToDatetime(tzinfo=UTC) == now
    assert not message.HasField("end_time")
