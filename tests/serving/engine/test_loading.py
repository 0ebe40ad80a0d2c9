from __future__ import annotations

import os

import pytest

from neuroweaver.artifacts.serving_config import parse
from neuroweaver.mesh.machine.memory import held_bytes
from neuroweaver.serving.engine.loading import load
from neuroweaver.serving.engine.network import CannotServe
from serving.models import config_for


def test_keys_and_values_keep_to_the_memory_limit(base, tmp_path):
    room = held_bytes(os.getpid()) + (1 << 30)
    assert load(parse(config_for(base, memory_limit_bytes=room)), tmp_path).ends
    with pytest.raises(CannotServe, match="there are 0; lower max_context_tokens, or give it more memory"):
        load(parse(config_for(base, memory_limit_bytes=1 << 20)), tmp_path)
