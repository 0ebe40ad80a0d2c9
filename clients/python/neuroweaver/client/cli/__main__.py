from __future__ import annotations

import sys

from neuroweaver.client.cli.program import main

sys.exit(main())
