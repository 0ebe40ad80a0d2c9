from __future__ import annotations

import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

from neuroweaver.trainer.settings import TrainerSettings
from neuroweaver.v1 import worker_pb2_grpc


class Trainer(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self):
        self.heard = queue.Queue()

    def Report(self, requests, context):  # noqa: N802
        self.heard.put(next(requests))
        return iter(())


def test_a_worker_is_heard_of_while_torch_is_imported(tmp_path):
    # A trainer takes a worker that it hears nothing of for lost, and a busy machine imports torch for longer.
    (tmp_path / "torch.py").write_text("import threading; threading.Event().wait()")
    home = {"NEUROWEAVER_HOME": str(tmp_path)}
    (tmp_path / "run").mkdir()
    trainer, server = Trainer(), grpc.server(ThreadPoolExecutor(2))
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(trainer, server)
    server.add_insecure_port(f"unix:{TrainerSettings.from_environment(home).worker_socket}")
    server.start()
    job = {
        "NEUROWEAVER_JOB_ID": "j1",
        "NEUROWEAVER_LEASE_TOKEN": "3",
        "NEUROWEAVER_JOB_FOLDER": str(tmp_path),
        "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path)),
    }
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "neuroweaver.trainer.worker"],
        env=os.environ | home | job,
        stdin=subprocess.PIPE,
        text=True,
    )
    try:
        worker.stdin.write("secret\n")
        worker.stdin.close()
        report = trainer.heard.get(timeout=120)
    finally:
        worker.kill()
        worker.wait()
        server.stop(None)
    assert (report.job_id, report.lease_token) == ("j1", 3)
