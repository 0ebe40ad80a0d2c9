"""What the libraries tell at every start, though nobody can do anything about it."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Leaves out those lines and no others; what else Python warns of becomes a line of the log."""
    logging.captureWarnings(capture=True)
    # PEFT asks transformers for it under its old name.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # PEFT imports bitsandbytes where it is installed, which on some processors misses a kernel that only
    # weights of four bits would use.
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    kernels.addFilter(lambda record: not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward"))
