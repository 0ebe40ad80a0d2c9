from __future__ import annotations

import subprocess
import sys


def test_starting_imports_no_scipy():
    """It takes up to seconds, which only an analysis should pay."""
    program = "import sys, neuroweaver.experiment.__main__; sys.exit(any(m.startswith('scipy') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
