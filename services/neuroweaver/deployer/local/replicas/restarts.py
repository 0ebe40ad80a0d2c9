"""How long a failed replica waits, and from when on it counts as in a crash loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from neuroweaver.v1 import deployer_pb2 as pb

WINDOW_S: Final = 600.0
_DOUBLINGS: Final = 30


@dataclass(frozen=True)
class Policy:
    """RecoveryPolicy's part about restarts, with the times of the spec that go with it. All in seconds."""

    backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    crash_loop_restarts: int = 5
    startup_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0

    @classmethod
    def of(cls, spec: pb.DeploymentSpec) -> Policy:
        recovery, default = spec.recovery, cls()
        has_restarts, has_drain = recovery.HasField("crash_loop_restarts"), spec.HasField("drain_timeout")
        return cls(
            recovery.restart_backoff.ToTimedelta().total_seconds() or default.backoff_s,
            recovery.max_restart_backoff.ToTimedelta().total_seconds() or default.max_backoff_s,
            recovery.crash_loop_restarts if has_restarts else default.crash_loop_restarts,
            spec.startup_timeout.ToTimedelta().total_seconds() or default.startup_timeout_s,
            spec.drain_timeout.ToTimedelta().total_seconds() if has_drain else default.drain_timeout_s,
        )


@dataclass(frozen=True)
class Failures:
    """Of one replica since it last ran well. Times are those of one monotonic clock, in seconds."""

    times: tuple[float, ...] = ()
    is_crash_loop: bool = False

    def failed(self, now: float, policy: Policy, ready_since: float | None) -> Failures:
        """After a further one. ready_since: when it had become ready before that; None if it never did."""
        ran_well = ready_since is not None and now - ready_since >= WINDOW_S
        times = (now,) if ran_well else (*self.times, now)[-_DOUBLINGS:]
        restarts = sum(time > now - WINDOW_S for time in times[:-1])
        was_looping = self.is_crash_loop and ready_since is None
        return replace(self, times=times, is_crash_loop=was_looping or restarts >= policy.crash_loop_restarts)

    def delay_s(self, policy: Policy) -> float:
        """Until the next start: doubled with each failure in a row."""
        if not self.times:
            return 0.0
        doubled: float = policy.backoff_s * 2.0 ** (len(self.times) - 1)
        return min(doubled, max(policy.backoff_s, policy.max_backoff_s))
