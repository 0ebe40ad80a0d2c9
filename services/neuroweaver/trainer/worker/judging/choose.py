"""The judge of a job: embedded, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neuroweaver.trainer.worker.judging.embedded import EmbeddedJudge
from neuroweaver.trainer.worker.judging.endpoint import Endpoint, OpenAIJudge
from neuroweaver.trainer.worker.judging.judge import (
    Comparison,
    Judge,
    JudgeItem,
    Judgement,
    JudgeUnavailable,
    Rubric,
    Usage,
    Verdict,
)

__all__ = [
    "Comparison",
    "EmbeddedJudge",
    "Endpoint",
    "Judge",
    "JudgeItem",
    "JudgeUnavailable",
    "Judgement",
    "OpenAIJudge",
    "Rubric",
    "Usage",
    "Verdict",
    "judge_from_environment",
]

EMBEDDED = "embedded"
OPENAI_URL = "https://api.openai.com/v1"


def judge_from_environment(
    feedback_model: str, environ: Mapping[str, str], *, cache: Path | None = None
) -> Judge:
    """The judge that `feedback_model` means.

    `embedded`: the embedded one. A name: that model at OPENAI_BASE_URL with OPENAI_API_KEY (an endpoint of
    one's own may need no key). Empty: the model in NEUROWEAVER_FEEDBACK_MODEL, or else the embedded judge.
    `cache`: a file for the paid judgements. NEUROWEAVER_JUDGE_CONCURRENCY, ..._TIMEOUT_S, ..._INPUT_PRICE and
    ..._OUTPUT_PRICE (US dollars for a million tokens) adjust it. Raises JudgeUnavailable.
    """
    model = feedback_model.strip() or environ.get("NEUROWEAVER_FEEDBACK_MODEL", "").strip() or EMBEDDED
    if model == EMBEDDED:
        return EmbeddedJudge()
    key = environ.get("OPENAI_API_KEY", "").strip()
    base_url = environ.get("OPENAI_BASE_URL", "").strip()
    if not key and not base_url:
        raise JudgeUnavailable(
            f"feedback_model {model!r} needs OPENAI_API_KEY, or OPENAI_BASE_URL of an endpoint without one; "
            f"feedback_model {EMBEDDED!r} needs neither"
        )
    return OpenAIJudge(
        Endpoint(
            model=model,
            base_url=base_url or OPENAI_URL,
            api_key=key or "none",
            concurrency=int(_number(environ, "CONCURRENCY", 8, least=1)),
            timeout_s=_number(environ, "TIMEOUT_S", 60, least=1),
            input_price=_number(environ, "INPUT_PRICE", 0, least=0),
            output_price=_number(environ, "OUTPUT_PRICE", 0, least=0),
        ),
        cache=cache,
    )


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = environ.get(f"NEUROWEAVER_JUDGE_{name}", "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise JudgeUnavailable(f"NEUROWEAVER_JUDGE_{name} must be a number from {least:g}, not {text!r}")
    return value
