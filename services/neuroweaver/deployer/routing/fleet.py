"""What stands behind the router."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Protocol

from neuroweaver.deployer.domain.backend import Redirect
from neuroweaver.deployer.routing.counts import Counts


class Upstream(Protocol):
    """Who may answer: a replica, or a Service in front of several. base_url: without `/v1`."""

    @property
    def replica_id(self) -> str: ...

    @property
    def revision(self) -> int: ...

    @property
    def base_url(self) -> str: ...

    def busy(self) -> AbstractContextManager[None]:
        """While a request is with it."""

    def suspect(self, *, has_refused: bool) -> None:
        """It took no connection. has_refused: at once; else not in time."""


class Fleet(Protocol):
    """One deployment. redirect: who has all of its traffic; None: it has it itself. max_prompt_chars: above
    which no prompt is passed on; 0 where its model servers know that themselves.
    """

    @property
    def redirect(self) -> Redirect | None: ...

    @property
    def max_prompt_chars(self) -> int: ...

    def pick(self, conversation: str, tried: Collection[str]) -> Upstream | None:
        """Who answers, of those whose ids were not tried. conversation: empty for a request that has none."""

    async def awake(self, conversation: str, within_s: float) -> Upstream | None:
        """Waits for one that a request wakes; None where none can be woken, or none came in time."""

    def counts(self, revision: int) -> Counts: ...

    def is_expected(self) -> bool:
        """Whether something will serve by itself before long."""
