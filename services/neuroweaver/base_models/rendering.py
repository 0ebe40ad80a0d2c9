"""Chats as a template writes them: `python -m neuroweaver.base_models.rendering` does it for another process.

A template is code of others, so it runs in a confined process alone: in this one where it is confined, else
in one that is started with the first chat, sees no secrets, and is ended at its limits of time and memory.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from neuroweaver.base_models import confinement
from neuroweaver.mesh.machine import processes
from neuroweaver.mesh.wire.keepable import keepable

CPU_S: Final = 10
"""Of one chat; most take milliseconds."""
MAX_CHARACTERS: Final = 16 << 20
_MAX_WORDS: Final = 500
_HALF_PAIR: Final = re.compile(r"[\ud800-\udfff]")
# Of a process that is no fault of the template.
_KILLED: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM})


class TemplateRefuses(Exception):
    """The chat template or the tokenizer does not take a chat; the text says why, in their words if any."""


def words_of(error: BaseException) -> str:
    """What an error of foreign code says, as far as a message can hold it."""
    return keepable(str(error))[:_MAX_WORDS] or type(error).__name__


def render(
    template: Any, chat: Sequence[Mapping[str, str]], names: Mapping[str, str], **options: bool
) -> str:
    """The text of a chat. names: what the template calls special tokens by. options: of transformers.

    Raises TemplateRefuses.
    """
    if confinement.is_confined():
        return _rendered(template, chat, names, options)
    return _renderer().render({"template": template, "chat": chat, "names": names, "options": options})


def close() -> None:
    """End the process that renders for this one; another is started when it is wanted."""
    _renderer().close()


def _rendered(template: Any, chat: Any, names: Mapping[str, str], options: Mapping[str, bool]) -> str:
    from transformers.utils.chat_template_utils import (  # noqa: PLC0415 (once torch is hidden)
        render_jinja_template,
    )

    try:
        (text,), _ = render_jinja_template([chat], chat_template=template, **names, **options)
    except MemoryError:
        raise
    except Exception as error:
        # A template refuses by Jinja's errors or any other.
        raise TemplateRefuses(words_of(error)) from error
    if len(text) > MAX_CHARACTERS:
        raise TemplateRefuses(f"it writes more than {MAX_CHARACTERS} characters")
    if _HALF_PAIR.search(text):
        raise TemplateRefuses("it writes half of a surrogate pair, which is no character")
    return str(text)


class _Renderer:
    """A confined process, started when it is wanted and again after its end. cpu_s: of one chat."""

    def __init__(self, cpu_s: int = CPU_S) -> None:
        self._cpu_s = cpu_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, request: Mapping[str, Any]) -> str:
        """Raises TemplateRefuses."""
        with self._lock:
            answer = self._answer(request)
            if isinstance(answer, int) and answer in _KILLED:  # perhaps for another's want of memory
                answer = self._answer(request)
        if isinstance(answer, int):
            raise TemplateRefuses(self._ending(answer))
        if "refusal" in answer:
            raise TemplateRefuses(answer["refusal"])
        return str(answer["text"])

    def close(self) -> None:
        with self._lock:
            self._end()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any] | int:
        """The process's answer, or its exit status if it ended without one."""
        self._process = process = self._process or _started(self._cpu_s)
        assert process.stdin
        assert process.stdout
        try:
            confinement.write(process.stdin, request)
            answer = confinement.read(process.stdout)
        except BrokenPipeError:
            answer = None
        return self._end() if answer is None else answer

    def _end(self) -> int:
        if (process := self._process) is None:
            return 0
        self._process = None
        # Ends the process, unless it has ended; what is left unsent concerns nobody.
        try:
            process.communicate()
        except BrokenPipeError:
            process.wait()
        return process.returncode

    def _ending(self, status: int) -> str:
        if status == -signal.SIGXCPU:
            return f"it takes more than {self._cpu_s} s for one chat"
        return f"its process {processes.ending(status)}"


@cache
def _renderer() -> _Renderer:
    renderer = _Renderer()
    atexit.register(renderer.close)
    return renderer


def _started(cpu_s: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  # a module of ours
        processes.module("neuroweaver.base_models.rendering", str(cpu_s)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=confinement.environment(os.environ),
    )


def _answered(request: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {"text": _rendered(**request)}
    except TemplateRefuses as error:
        return {"refusal": str(error)}
    except MemoryError:
        return {"refusal": f"it needs more than {confinement.MEMORY_BYTES >> 30} GiB of memory"}


def main() -> None:
    confinement.confine()
    requests, answers = confinement.pipes()
    while True:
        confinement.limit_cpu(int(sys.argv[1]))
        if (request := confinement.read(requests)) is None:
            return
        confinement.write(answers, _answered(request))


if __name__ == "__main__":
    main()
