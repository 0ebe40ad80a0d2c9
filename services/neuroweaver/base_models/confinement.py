"""What confines a process that runs a base model's chat template and tokenizer: code and data of others.

They may loop, or fill the memory, which then ends their process alone. Whoever starts it gives it
ENVIRONMENT, and bounds its time; the process confines itself before it imports transformers.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

# Threads of their own would take addresses for each core of the machine, and help none.
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
MEMORY_BYTES: Final = 2 << 30
"""Of addresses. A tokenizer of 262,000 tokens takes a quarter of it."""


def confine() -> None:
    """Bounds this process's memory, and hides torch from it.

    An import of torch fails from here on, which transformers takes as its absence: tokenizers do without, and
    the process starts in half the time and a third of the memory.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.modules["torch"] = None  # type: ignore[assignment]
