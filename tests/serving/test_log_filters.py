from __future__ import annotations

import json
import subprocess
import sys

from serving.models import config_for
from serving.processes import environment, served

WARNS = """
import logging, warnings
from neuroweaver.mesh.server import logs
from neuroweaver.serving.log_filters import quieten
logs.configure("serving")
quieten()
warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning)
warnings.warn("something else is deprecated", FutureWarning)
kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", ImportError("kernels"))
kernels.warning("the library does not fit this processor")
"""


def test_a_start_with_an_adapter_says_nothing_but_what_it_does(base, first, tmp_path):
    with served(tmp_path, config_for(base, first)) as server:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [each["message"] for each in lines] == ["listening", "ready"]


def test_other_warnings_are_lines_of_the_log():
    done = subprocess.run(
        [sys.executable, "-c", WARNS], capture_output=True, text=True, env=environment(), check=True
    )
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [each["level"] for each in told] == ["warning", "warning"]
    assert "something else is deprecated" in told[0]["message"]
    assert told[1]["message"] == "the library does not fit this processor"
