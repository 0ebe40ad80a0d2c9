"""What chats of many turns cost to encode, in CPU seconds of this process and the one that renders.

python bench/long_chats.py 1000 5000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from base_models.families import NAMED
from neuroweaver.base_models import rendering
from neuroweaver.trainer.data.encoding import encode


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def encoded(tokenizer: object, turns: int) -> tuple[float, int]:
    """Seconds, and tokens; the start of the process that renders, and its end, count."""
    chat = [
        {"role": ("user", "assistant")[place % 2], "content": f"check the oil of the engine {place}"}
        for place in range(turns)
    ]
    begun = cpu_s()
    (row,) = encode(tokenizer, chat)
    rendering.close()
    return cpu_s() - begun, len(row.input_ids)


if __name__ == "__main__":
    for name in ("ChatML", "Llama 3", "Mistral"):
        tokenizer = NAMED[name].tokenizer()
        start_s, _ = encoded(tokenizer, 2)
        for turns in map(int, sys.argv[1:]):
            seconds, tokens = encoded(tokenizer, turns)
            print(f"{name:8} {turns:6} turns {tokens:7} tokens {seconds - start_s:6.2f} s")
