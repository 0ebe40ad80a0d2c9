"""Starts a model server: `python -m neuroweaver.serving --config FILE`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import uvloop

from neuroweaver.artifacts.serving_config import BadConfig, ServingConfig, read
from neuroweaver.mesh.server import logs
from neuroweaver.mesh.wire.environment import SettingsError
from neuroweaver.serving.http.server import Exit, ModelServer
from neuroweaver.serving.log_filters import quieten


async def _serve(config: ServingConfig) -> Exit:
    return await ModelServer(config).run()


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m neuroweaver.serving", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    # Read when torch loads libgomp. Threads that spin while they wait take the cores from the HTTP loop and
    # from other replicas of this machine; see bench/RESULTS.md, "How OpenMP threads wait".
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Nothing is compiled here; bitsandbytes, which peft imports where it is installed, would load a compiler.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    logs.configure("serving")
    quieten()
    try:
        code = uvloop.run(_serve(read(arguments.config)))
    except (BadConfig, SettingsError) as error:
        logging.getLogger(__name__).error("bad configuration: %s", error)  # noqa: TRY400 (the owner's, no bug)
        code = Exit.BAD_CONFIG
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: the engine's thread may be anywhere inside torch, whose end of process it would crash.
    os._exit(code)


if __name__ == "__main__":
    main()
