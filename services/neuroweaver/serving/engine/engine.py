"""Continuous batching: sequences join and leave the running batch between any two tokens.

One thread runs the network. All else speaks to it through a queue, and hears of a step's tokens by one call.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Generic, Protocol, TypeVar

from neuroweaver.serving.engine.generation import Answer, Delta, Draw, Generation
from neuroweaver.serving.status import Pulse

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Padded tokens of prompts that one step computes: running sequences wait no longer for their next token.
PREFILL_TOKENS: Final = 512


class QueueFull(Exception):
    """As many requests wait as may. retry_after_s: when one of them will probably have left."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too many requests wait already")
        self.retry_after_s = retry_after_s


class Forward(Protocol):
    """What the engine asks of a network; see `network.Network`."""

    max_context: int

    def reserve(self, rows: int, length: int) -> bool: ...
    def move(self, source: int, target: int) -> None: ...
    def release(self) -> None: ...
    def forward(
        self,
        first_row: int,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        versions: Sequence[str],
    ) -> Any: ...
    def choose(self, logits: Any, draws: Sequence[Draw]) -> list[int]: ...


Deliver = Callable[[Sequence[tuple[Answer, Delta]]], None]
"""Called in the engine's thread with what a step made; must return at once."""


class Engine:
    """Runs the generations of many callers together over one network.

    Rows: first those that make a token each step, then those whose prompt is not through yet.
    """

    def __init__(
        self,
        network: Forward,
        tokenizer: Any,
        deliver: Deliver,
        pulse: Pulse,
        *,
        max_batch_size: int = 16,
        max_queue_size: int = 256,
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._deliver = deliver
        self._pulse = pulse
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._changed = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._tasks: deque[_Task[Any]] = deque()
        self._is_stopped = False
        self._rows: list[Answer] = []
        self._making = 0  # of the rows, how many make a token each step
        self._seconds_per_answer = 1.0  # smoothed

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, generation: Generation) -> Answer:
        """Raises QueueFull."""
        answer = Answer(generation, self._tokenizer)
        with self._changed:
            free = self._max_batch_size - len(self._rows)
            if len(self._waiting) >= self._max_queue_size + max(0, free):
                raise QueueFull(self._retry_after_s())
            self._waiting.append(answer)
            self._pulse.work()
            self._changed.notify()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Nothing more of `answer` is made or delivered."""
        with self._changed:
            answer.is_cancelled = True
            self._changed.notify()

    def between_steps(
        self, work: Callable[[], Result], *, version_unused: str | None = None
    ) -> Future[Result]:
        """Runs `work` in the engine's thread between forward passes, once nobody uses `version_unused`."""
        task = _Task(work, version_unused)
        with self._changed:
            self._tasks.append(task)
            self._changed.notify()
        return task.result

    def stop(self) -> None:
        """`run` returns after the step that it is in."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def warm_up(self) -> None:
        """First tokens, so that no request pays for what is only made once."""
        rows = min(self._max_batch_size, 4)
        warm = [Answer(Generation([1] * 16, 2), self._tokenizer) for _ in range(rows)]
        self._waiting.extend(warm)
        while self._waiting or self._rows:
            self._step()

    def run(self) -> None:
        """Generates until stopped."""
        while self._has_turn():
            try:
                if self._waiting or self._rows:
                    self._step()
                else:
                    self._probe()
            except Exception:
                logger.exception("a step of the engine failed", extra={"running": len(self._rows)})
                self._fail_rows()

    def _has_turn(self) -> bool:
        """Waits for something to do, at the longest until a probe is due. False: it was stopped."""
        self._run_tasks()
        with self._changed:
            if not (self._waiting or self._rows):
                self._pulse.rest()
                if not (self._is_stopped or self._tasks):
                    self._changed.wait(self._pulse.probe_interval_s)
            if self._waiting or self._rows:
                self._pulse.work()
            return not self._is_stopped

    def _run_tasks(self) -> None:
        with self._changed:
            used = {answer.generation.version for answer in (*self._rows, *self._waiting)}
            due = [task for task in self._tasks if task.version_unused not in used]
            self._tasks = deque(task for task in self._tasks if task not in due)
        for task in due:
            task.run()

    def _probe(self) -> None:
        """A token for nobody: the proof that the network still makes some."""
        if self._tasks or self._waiting or self._is_stopped:
            return
        self._network.release()
        self._network.reserve(1, 1)
        self._network.choose(self._network.forward(0, [[1]], [0], [""]), [Draw(0, 1, 0)])
        self._pulse.beat(made_tokens=True)

    def _step(self) -> None:
        """At most one piece of prompts, and one token for each row that makes some."""
        self._drop_cancelled()
        self._admit()
        self._prefill()
        self._decode()

    def _drop_cancelled(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].is_cancelled:
                self._remove(row)

    def _admit(self) -> None:
        while len(self._rows) < self._max_batch_size and (answer := self._next_waiting()):
            longest = max(len(row.tokens) for row in (*self._rows, answer))
            if not self._network.reserve(len(self._rows) + 1, longest + 1):
                with self._changed:
                    self._waiting.appendleft(answer)
                return
            self._rows.append(answer)

    def _next_waiting(self) -> Answer | None:
        with self._changed:
            while self._waiting:
                answer = self._waiting.popleft()
                if not answer.is_cancelled:
                    return answer
        return None

    def _prefill(self) -> None:
        first = self._making
        pieces = _pieces(self._rows[first:])
        if not pieces:
            return
        answers = self._rows[first : first + len(pieces)]
        logits = self._forward(first, pieces)
        self._pulse.beat(made_tokens=False)
        if not answers[0].pending:
            self._making += len(pieces)
            self._take(first, logits)

    def _decode(self) -> None:
        self._make_room()
        if self._making:
            logits = self._forward(0, [answer.pending for answer in self._rows[: self._making]])
            self._take(0, logits)

    def _forward(self, first_row: int, tokens: Sequence[Sequence[int]]) -> Any:
        answers = self._rows[first_row : first_row + len(tokens)]
        starts = [answer.cached for answer in answers]
        versions = [answer.generation.version for answer in answers]
        logits = self._network.forward(first_row, tokens, starts, versions)
        for answer, new in zip(answers, tokens, strict=True):
            answer.cached += len(new)
        return logits

    def _take(self, first_row: int, logits: Any) -> None:
        """A token for each row from `first_row` to the last that makes some; those that are done leave."""
        answers = self._rows[first_row : self._making]
        tokens = self._network.choose(logits, [answer.draw() for answer in answers])
        made = [
            (answer, answer.take(token, max_context=self._network.max_context))
            for answer, token in zip(answers, tokens, strict=True)
        ]
        self._pulse.beat(made_tokens=True)
        self._deliver([(answer, delta) for answer, delta in made if not answer.is_cancelled])
        for offset in reversed(range(len(made))):
            answer, delta = made[offset]
            if delta.is_last:
                spent_s = time.monotonic() - answer.start_time
                self._seconds_per_answer += 0.1 * (spent_s - self._seconds_per_answer)
                self._remove(first_row + offset)

    def _make_room(self) -> None:
        """For each row's next token; what does not fit any more waits again and is computed anew later."""
        while self._rows:
            longest = max(len(answer.tokens) for answer in self._rows)
            if self._network.reserve(len(self._rows), longest):
                return
            answer = self._rows[-1]
            self._remove(len(self._rows) - 1)
            answer.cached = 0
            with self._changed:
                self._waiting.appendleft(answer)

    def _remove(self, row: int) -> None:
        """The rows stay without gaps, those that make tokens first."""
        if row < self._making:
            self._making -= 1
            self._move(self._making, row)
            row = self._making
        self._move(len(self._rows) - 1, row)
        self._rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._network.move(source, target)
            self._rows[target] = self._rows[source]

    def _fail_rows(self) -> None:
        failed, self._rows, self._making = self._rows, [], 0
        self._network.release()
        self._deliver([(answer, Delta("", answer.made, error="the engine failed")) for answer in failed])

    def _retry_after_s(self) -> int:
        rounds = (len(self._waiting) + 1) / self._max_batch_size
        return min(60, max(1, math.ceil(self._seconds_per_answer * rounds)))


def _pieces(answers: Sequence[Answer]) -> list[list[int]]:
    """What of the first prompts goes through together: a piece of one that is long, or several whole ones.

    The rest of a long prompt goes alone: behind its beginning there may be no room for the padding of others.
    """
    if not answers:
        return []
    if answers[0].cached or len(answers[0].pending) > PREFILL_TOKENS:
        return [answers[0].pending[:PREFILL_TOKENS]]
    pieces: list[list[int]] = []
    longest = 0
    for answer in answers:
        longest = max(longest, len(answer.pending))
        if answer.cached or longest * (len(pieces) + 1) > PREFILL_TOKENS:
            break
        pieces.append(answer.pending)
    return pieces


class _Task(Generic[Result]):
    """Work for the engine's thread."""

    def __init__(self, work: Callable[[], Result], version_unused: str | None) -> None:
        self.result: Future[Result] = Future()
        self.version_unused = version_unused
        self._work = work

    def run(self) -> None:
        try:
            self.result.set_result(self._work())
        except Exception as error:  # noqa: BLE001 (belongs to whoever waits for the result)
            self.result.set_exception(error)
