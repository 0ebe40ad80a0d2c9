"""A model server whose engine thread truly stands still while the file named by WEDGE exists.

python -m serving.wedging --config FILE
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from neuroweaver.serving import __main__
from neuroweaver.serving.engine.network import Network

forward = Network.forward


def wedged(*arguments: Any) -> Any:
    while Path(os.environ["WEDGE"]).exists():
        time.sleep(0.01)
    return forward(*arguments)


if __name__ == "__main__":
    Network.forward = wedged  # type: ignore[method-assign]
    __main__.main()
