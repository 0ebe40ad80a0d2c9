"""What the HTTP endpoints share: the engine once it is there, the answers under way, the versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from neuroweaver.mesh.server.http_bodies import Bodies
from neuroweaver.serving.engine.engine import Engine
from neuroweaver.serving.engine.generation import Answer, Delta, Generation
from neuroweaver.serving.requests import ApiError
from neuroweaver.serving.status import Phase, Status
from neuroweaver.serving.tokenizing import Prompt, Tokenizers
from neuroweaver.serving.versions import Versions


class Deltas:
    """What was made of an answer and is not taken yet, as one: for a slow reader only its text is kept."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._last: Delta | None = None
        self._changed = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._last = delta
        self._changed.set()

    def end(self) -> None:
        """Nobody listens any more."""
        self._last = None
        self._changed.set()

    async def get(self) -> Delta | None:
        """None: there will be no more."""
        await self._changed.wait()
        if self._last is None:
            return None
        delta = replace(self._last, text="".join(self._texts))
        self._texts.clear()
        self._changed.clear()
        return delta


class Work:
    """Belongs to the event loop; only `deliver` may be called from another thread."""

    def __init__(
        self,
        status: Status,
        versions: Versions,
        loop: asyncio.AbstractEventLoop,
        bodies: Bodies,
        tokenizers: Tokenizers,
    ) -> None:
        self.status = status
        self.bodies = bodies
        self.versions = versions
        self.requests = 0
        self.max_context = 0
        self._loop = loop
        self._engine: Engine | None = None
        self._tokenizers = tokenizers
        self._ends: frozenset[int] = frozenset()
        self._streams: dict[Answer, Deltas] = {}

    def attach(self, engine: Engine, max_context: int, ends: frozenset[int]) -> None:
        """The engine is warm: requests are taken. ends: token ids that end an answer of any version."""
        self._engine, self.max_context = engine, max_context
        self._ends = ends
        self.status.loaded_versions = tuple(self.versions.loaded)
        self.status.enter(Phase.READY)

    @property
    def engine(self) -> Engine | None:
        return self._engine

    @property
    def running(self) -> int:
        return self._engine.running if self._engine else 0

    @property
    def waiting(self) -> int:
        return self._engine.waiting if self._engine else 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts among the requests that a drain waits for."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def refuse_unless_ready(self) -> None:
        """Raises ApiError while the model loads, and once the server drains."""
        phase = self.status.phase
        if phase is Phase.READY and self._engine is not None:
            return
        raise ApiError(
            f"The server is {phase} and takes no requests now.",
            status=503,
            kind="server_error",
            code="draining" if phase is Phase.DRAINING else "not_ready",
            retry_after_s=1,
        )

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """Raises ApiError."""
        ids = await self._tokenizers.ids(prompt, self.max_context)
        if not ids:
            raise ApiError("The prompt has no token.", parameter="prompt", code="invalid_value")
        return ids

    def ends(self, version: str) -> frozenset[int]:
        """Token ids that end an answer of the version."""
        return self._ends | self.versions.ends.get(version, frozenset())

    def submit(self, generation: Generation) -> Answer:
        """Raises QueueFull; ApiError if a drain began or the version was dropped in the meantime."""
        self.refuse_unless_ready()
        self.versions.meant(self.versions.full_name(generation.version))
        assert self._engine is not None
        answer = self._engine.submit(generation)
        self._streams[answer] = Deltas()
        return answer

    def deltas(self, answer: Answer) -> Deltas:
        return self._streams[answer]

    def leave(self, answer: Answer) -> None:
        """Nobody listens to `answer` any more; what is left of it is not made."""
        del self._streams[answer]
        if self._engine is not None:
            self._engine.cancel(answer)

    def deliver(self, made: Sequence[tuple[Answer, Delta]]) -> None:
        """Hands on what a step of the engine made; for its thread."""
        self._loop.call_soon_threadsafe(self._distribute, made)

    def _distribute(self, made: Sequence[tuple[Answer, Delta]]) -> None:
        for answer, delta in made:
            if stream := self._streams.get(answer):
                stream.put(delta)
