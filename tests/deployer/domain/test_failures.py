import json

import pytest

from neuroweaver.deployer.domain.failures import MOST_CHARACTERS, explained

TRACEBACK = """Traceback (most recent call last):
  File "/app/serve.py", line 3, in main
    load()
  File "/app/load.py", line 9, in load
    raise ValueError(
ValueError: layer 3 has shape (2, 2), not (4, 4)
"""


@pytest.mark.parametrize(
    ("lines", "exit_code", "code", "part"),
    [
        (TRACEBACK.splitlines(), 1, "CRASHED", "ValueError: layer 3 has shape (2, 2), not (4, 4)"),
        (["loading", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"], 1, "GPU_OUT_OF_MEMORY", "2 GiB"),
        (["loading weights"], 137, "KILLED", "loading weights"),
        (["loading weights"], -9, "KILLED", "memory"),
        (["DamagedArtifacts: model.safetensors has SHA-256 aa11, not bb22"], 3, "DIGEST_MISMATCH", "bb22"),
        (["verifying"], 3, "ARTIFACT_CORRUPT", "verifying"),
        (["RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"], 1, "OUT_OF_MEMORY", "alloc_cpu"),
        (["OSError: [Errno 98] Address already in use"], 1, "PORT_IN_USE", "98"),
        (["OSError: [Errno 28] No space left on device"], 1, "DISK_FULL", "device"),
        (["FileNotFoundError: [Errno 2] No such file or directory: 'config.json'"], 4, "ARTIFACT_MISSING", "config.json"),
        ([], 2, "BAD_CONFIG", "configuration"),
        ([], -11, "SEGMENTATION_FAULT", "segmentation fault"),
        ([], 139, "SEGMENTATION_FAULT", "segmentation fault"),
        ([], 70, "CRASHED", "exit code 70"),
        ([], None, "CRASHED", "no line"),
    ],
)  # fmt: skip
def test_the_reason_is_found(lines, exit_code, code, part):
    failure = explained(lines, exit_code)
    assert failure.code == code
    assert part in failure.message


def test_what_the_backend_knows_comes_first():
    assert explained(["ready"], 137, "OOMKilled").code == "OUT_OF_MEMORY"
    pulled = explained([], None, 'ImagePullBackOff: Back-off pulling image "x:1"')
    assert pulled.code == "IMAGE_PULL"
    assert '"x:1"' in pulled.message


def test_the_last_traceback_counts_and_not_what_it_was_caused_by():
    lines = [
        *TRACEBACK.splitlines(),
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "/app/serve.py", line 8, in main',
        "    raise CannotLoad() from error",
        "neuroweaver.serving.engine.loading.CannotLoad: the adapter does not fit its base",
        "shutting down",
    ]
    assert "does not fit its base" in explained(lines, 4).message


def test_json_lines_are_read():
    lines = [
        json.dumps({"level": "info", "message": "an error is nothing to fear"}),
        json.dumps({"level": "error", "message": "cannot start", "exception": TRACEBACK}),
        json.dumps({"level": "info", "message": "bye"}),
    ]
    assert "layer 3" in explained(lines, 1).message
    assert (
        "cannot start"
        in explained([json.dumps({"level": "ERROR", "message": "cannot start"}), "{not json"], 1).message
    )


def test_an_old_warning_is_no_reason():
    assert explained(["probe timed out, trying again", "ready", "KeyError: 'lm_head'"], 1).code == "CRASHED"


def test_secrets_are_hidden_and_long_lines_cut():
    message = explained(
        ["ValueError: api_key=sk-123456 and Authorization: Bearer abc.def refused"], 1
    ).message
    assert "sk-123456" not in message
    assert "abc.def" not in message
    assert "no token was made" in explained(["RuntimeError: no token was made"], 1).message
    assert len(explained(["ValueError: " + "x" * 10_000], 1).message) < MOST_CHARACTERS + 50
