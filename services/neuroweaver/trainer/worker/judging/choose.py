"""The judge of a job: built in, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Final

from neuroweaver.mesh.wire.environment import SettingsError, read
from neuroweaver.trainer.domain.offers import EMBEDDED_JUDGE, JUDGES, JUDGING
from neuroweaver.trainer.worker.judging.judge import Judge, JudgeUnavailable
from neuroweaver.trainer.worker.judging.settings import OPENAI_URL, JudgeSettings

# By name, as the built-in ones: a job that asks no endpoint need not wait until openai is imported.
_ENDPOINT: Final = f"{JUDGING}.endpoint:OpenAIJudge"


def judge_named(feedback_model: str, environ: Mapping[str, str], *, cache: Path | None = None) -> Judge:
    """The built-in judge, or the model of that name at the endpoint of the environment.

    cache: a file for the paid judgements. Raises JudgeUnavailable.
    """
    judge: Judge
    if feedback_model in JUDGES:
        judge = resolve_name(JUDGES[feedback_model])()
        return judge
    try:
        settings = read(JudgeSettings, environ, model=feedback_model)
    except SettingsError as error:
        raise JudgeUnavailable(str(error)) from error
    if not settings.api_key and settings.base_url == OPENAI_URL:
        raise JudgeUnavailable(
            f"feedback_model {feedback_model!r} needs OPENAI_API_KEY, or OPENAI_BASE_URL of an endpoint that "
            f"asks for no key; feedback_model {EMBEDDED_JUDGE!r} needs neither"
        )
    judge = resolve_name(_ENDPOINT)(settings, cache=cache)
    return judge
