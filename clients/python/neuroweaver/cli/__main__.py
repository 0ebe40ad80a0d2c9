from __future__ import annotations

import sys

from neuroweaver.cli.program import main

sys.exit(main())
