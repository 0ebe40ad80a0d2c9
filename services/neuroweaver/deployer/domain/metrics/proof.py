"""What a revision's counters prove of its engine, where its replicas do not tell when they made a token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from neuroweaver.deployer.domain.metrics.measurement import Tally


@dataclass(frozen=True)
class Proof:
    """As of the last tally. token_time: when the tokens were last seen to have become more.

    asked_since: when requests that are still at work, or others after them without a pause, were first seen
    to ask for a token and got none since; None: nothing asks for one.
    """

    last: Tally
    token_time: datetime | None = None
    asked_since: datetime | None = None

    def followed_by(self, tally: Tally) -> Proof:
        before, after = self.last.measured, tally.measured
        # A replica that could not be asked for a while brings its old tokens back.
        is_same_sum = before.missing_replicas == after.missing_replicas
        if is_same_sum and after.tokens > before.tokens:
            return replace(first(tally), token_time=tally.time)
        asked_since = first(tally).asked_since and (self.asked_since or tally.time)
        return replace(self, last=tally, asked_since=asked_since)


def first(tally: Tally) -> Proof:
    """From a tally that none came before."""
    is_asked = bool((tally.measured.running or 0) + (tally.measured.waiting or 0))
    return Proof(tally, asked_since=tally.time if is_asked else None)
