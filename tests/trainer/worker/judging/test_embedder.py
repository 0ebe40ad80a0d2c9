from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.trainer.worker.judging.embedded import Embedder, model_folder
from neuroweaver.trainer.worker.process.monitor import Silent


@pytest.mark.parametrize("token", ["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]"])
def test_special_tokens_in_a_text_are_letters(token):
    embedder = Embedder(model_folder())
    # Uncased, the model reads the same words in both; the token is in its vocabulary in capitals alone.
    texts = [f"replace {token} the pads", f"replace {token.lower()} the pads"]
    embedder.prepare(texts, Silent())
    assert np.allclose(*embedder.of(texts), atol=1e-6)
