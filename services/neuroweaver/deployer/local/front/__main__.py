"""The router of this machine as a process: `python -m neuroweaver.deployer.local.front --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from neuroweaver.deployer.local.front.program import serve
from neuroweaver.deployer.local.routes import read
from neuroweaver.mesh.server import logs


async def _serve(file: Path) -> None:
    config = read(file)
    if config is None:
        raise SystemExit(f"{file} is no configuration of a router")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(config, file.parent, stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m neuroweaver.deployer.local.front", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a JSON file")
    arguments = parser.parse_args()
    os.umask(0o077)
    logs.configure("router")
    # A terminal's ^C is for the deployer, which ends this when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        uvloop.run(_serve(arguments.config))
    except OSError as error:
        sys.exit(f"the router cannot serve: {error.strerror}")


if __name__ == "__main__":
    main()
