"""Makes a base model ready on this machine: `python -m neuroweaver.base_models NAME --home FOLDER`.

Writes one JSON object with `folder` and `digest` (that of `BasePin.model_digest`) to standard output. For a
caller who shall not import torch, which converting the shipped model needs. Exits 1 with the reason on
standard error, or 75 (EX_TEMPFAIL) where another try may succeed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from neuroweaver.base_models.catalog import UnknownBaseModel, resolve
from neuroweaver.base_models.folders import BaseModelUnavailable, HubUnreachable, digests, materialize


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m neuroweaver.base_models")
    parser.add_argument("name", help="smollm2-135m-instruct, a folder under HOME/models, a path, or a hub id")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--offline", action="store_true", help="never ask the hub")
    arguments = parser.parse_args()
    try:
        base = resolve(arguments.name, home=arguments.home, allow_network=not arguments.offline)
        folder = materialize(base, arguments.home)
        digest = digests(folder).base
    except UnknownBaseModel as error:
        sys.stderr.write(f"{error.reason}\n")
        return os.EX_TEMPFAIL if error.may_pass else 1
    except BaseModelUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_TEMPFAIL if isinstance(error, HubUnreachable) else 1
    sys.stdout.write(json.dumps({"folder": str(folder), "digest": digest}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
