"""Prompts as token ids, made by processes that end at their limits and are replaced.

So a template that loops, or a prompt that takes too much, costs its own request and holds up few others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any, Final

from neuroweaver.base_models import confinement
from neuroweaver.base_models.confinement import LENGTH
from neuroweaver.mesh.machine import processes
from neuroweaver.serving.requests import ApiError, Message
from neuroweaver.serving.status import Pulse

logger = logging.getLogger(__name__)

Prompt = list[Message] | str | list[int]

# Of a prompt; one of 100,000 tokens takes a tenth of it.
CPU_S: Final = 5
_PROCESSES: Final = 2
# To start, and for one request with its wait for others: long, since the processor may be busy elsewhere.
_START_S: Final = 120.0
_DEADLINE_S: Final = 30.0
_AGAIN_S: Final = 1.0
_PROBE: Final[list[Message]] = [{"role": "user", "content": "Hello"}]


class CannotTokenize(Exception):
    """No process with this tokenizer and template gets ready; the text says why."""


class _Ended(Exception):
    """code: as `subprocess` has it."""

    def __init__(self, code: int) -> None:
        super().__init__(_ending(code))
        self.is_at_limit = code < 0


class Tokenizers:
    """Belongs to the event loop. pulse: beats with every request that ends, be it at a limit."""

    def __init__(self, pulse: Pulse, *, processes: int = _PROCESSES, deadline_s: float = _DEADLINE_S) -> None:
        self._pulse = pulse
        self._count = processes
        self._deadline_s = deadline_s
        self._free: asyncio.Queue[_Process] = asyncio.Queue()
        self._all: set[_Process] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, folder: Path) -> None:
        """folder: of the tokenizer, which stays. Raises CannotTokenize."""
        self._free.put_nowait(await self._started(folder))
        self._pulse.beat(made_tokens=False)
        for _ in range(self._count - 1):
            self._keep(self._add(folder))
        self._keep(self._probe())

    async def ids(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """max_tokens: of which a prompt that has more is refused. Raises ApiError."""
        try:
            async with asyncio.timeout(self._deadline_s):
                answer = await self._answer({"prompt": prompt, "max_tokens": max_tokens})
        except _Ended as error:
            if error.is_at_limit:
                raise _too_costly() from error
            raise
        except TimeoutError as error:
            raise ApiError(
                f"The prompt could not be tokenized within {self._deadline_s:g} s.",
                status=429,
                kind="rate_limit_error",
                code="busy",
                retry_after_s=5,
            ) from error
        if answer.get("is_too_costly"):
            raise _too_costly()
        if "refusal" in answer:
            raise ApiError(**answer["refusal"])
        return list(answer["ids"])

    async def close(self) -> None:
        """No process is left after it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(process.end() for process in self._all))

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises _Ended."""
        process = await self._free.get()
        is_whole = False
        try:
            answer = await process.ask(request)
            is_whole = True
        finally:
            if is_whole:
                self._free.put_nowait(process)
            else:
                self._keep(self._replace(process))
            self._pulse.beat(made_tokens=False)
        return answer

    async def _started(self, folder: Path) -> _Process:
        """Raises CannotTokenize."""
        process = await _Process.start(folder)
        self._all.add(process)
        try:
            async with asyncio.timeout(_START_S):
                await process.hear()
        except (TimeoutError, _Ended) as error:
            await self._end(process)
            why = str(error) or f"is not ready after {_START_S:g} s"
            raise CannotTokenize(f"the tokenizer or its chat template {why}") from error
        return process

    async def _replace(self, process: _Process) -> None:
        await self._end(process)
        await self._add(process.folder)

    async def _add(self, folder: Path) -> None:
        while True:
            try:
                self._free.put_nowait(await self._started(folder))
            except (CannotTokenize, OSError):
                logger.exception("a tokenizer cannot be started")
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    async def _end(self, process: _Process) -> None:
        await process.end()
        self._all.discard(process)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._pulse.probe_interval_s)
            # A refusal is an answer, too; without any, the pulse is missed.
            with contextlib.suppress(ApiError, _Ended):
                await self.ids(_PROBE, 1 << 10)

    def _keep(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Process:
    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        assert process.stdout
        self.folder = folder
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def start(cls, folder: Path) -> _Process:
        """Raises OSError."""
        command = processes.module("neuroweaver.serving.tokenizer_process", str(folder))
        pipe = asyncio.subprocess.PIPE
        environ = confinement.environment(os.environ)
        return cls(
            folder, await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=environ)
        )

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises _Ended."""
        content = json.dumps(request).encode()
        try:
            self._stdin.write(LENGTH.pack(len(content)) + content)
            await self._stdin.drain()
        except ConnectionError:
            raise _Ended(await self._process.wait()) from None
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        """Raises _Ended."""
        try:
            (length,) = LENGTH.unpack(await self._stdout.readexactly(LENGTH.size))
            return dict(json.loads(await self._stdout.readexactly(length)))
        except asyncio.IncompleteReadError:
            raise _Ended(await self._process.wait()) from None

    async def end(self) -> None:
        self._stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _too_costly() -> ApiError:
    return ApiError(
        f"The chat template and the tokenizer take more than {CPU_S} s or too much memory for this prompt.",
        code="prompt_too_costly",
    )


def _ending(code: int) -> str:
    if code == -signal.SIGXCPU:
        return f"takes more than {CPU_S} s"
    return f"fails: its process {processes.ending(code)}; see the log"
