"""What to start, stop and swap next, so that the replicas that are there become those that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuroweaver.v1 import deployer_pb2 as pb


@dataclass(frozen=True)
class There:
    """A replica that is there. target: what it was started as; see `launch.Launch.target`.

    can_swap: it takes another adapter without a restart. is_leaving: told to end, and not ended yet.
    """

    number: int
    target: str
    is_ready: bool
    is_leaving: bool = False
    can_swap: bool = False


@dataclass(frozen=True)
class Steps:
    """What can be done at once. starts: how many of each target. swaps: the replica and its new target."""

    starts: Mapping[str, int] = field(default_factory=dict)
    stops: tuple[int, ...] = ()
    swaps: tuple[tuple[int, str], ...] = ()

    @property
    def is_nothing(self) -> bool:
        return not (self.starts or self.stops or self.swaps)


def next_steps(
    desired: Mapping[str, int],
    there: Sequence[There],
    mode: pb.ReplacementMode.ValueType,
    *,
    max_surge: int,
    max_unavailable: int,
) -> Steps:
    """desired: how many of each target, in the order in which they are started. max_surge: above the number
    wanted while surging. max_unavailable: below it while replacing.
    """
    staying = [each for each in there if not each.is_leaving]
    stops = _surplus(desired, staying)
    kept = [each for each in staying if each.number not in stops]
    old = [each for each in kept if each.target not in desired]
    missing = {
        target: count - sum(each.target == target for each in kept) for target, count in desired.items()
    }
    missing = {target: count for target, count in missing.items() if count > 0}

    swaps: list[tuple[int, str]] = []
    if mode == pb.REPLACEMENT_MODE_SWAP_ADAPTER:
        swaps = _swaps(missing, [each for each in old if each.can_swap and each.is_ready])
        swapped = {number for number, _ in swaps}
        old = [each for each in old if each.number not in swapped]

    if mode == pb.REPLACEMENT_MODE_RECREATE and (
        old or any(each.is_leaving and each.target not in desired for each in there)
    ):
        return Steps(stops=(*stops, *(each.number for each in old)))
    total = sum(desired.values())
    allowed = max(0, total + max_surge - len(kept)) if old else sum(missing.values())
    starts = _first(missing, allowed)
    retired = _retired(old, kept, total - max_unavailable)
    return Steps(starts, (*stops, *retired), tuple(swaps))


def _surplus(desired: Mapping[str, int], staying: Sequence[There]) -> list[int]:
    """Of a target with too many: first what is not ready, then the newest."""
    surplus: list[int] = []
    for target, count in desired.items():
        of_target = sorted(
            (each for each in staying if each.target == target),
            key=lambda each: (not each.is_ready, each.number),
            reverse=True,
        )
        surplus += [each.number for each in of_target[: max(0, len(of_target) - count)]]
    return surplus


def _retired(old: Sequence[There], kept: Sequence[There], least_ready: int) -> list[int]:
    """A broken old replica goes at once, since it only takes room; a ready one when it can be spared."""
    to_spare = sum(each.is_ready for each in kept) - least_ready
    broken = [each.number for each in old if not each.is_ready]
    ready = [each.number for each in old if each.is_ready]
    return broken + ready[: max(0, to_spare)]


def _swaps(missing: dict[str, int], able: Sequence[There]) -> list[tuple[int, str]]:
    """Takes what is swapped off `missing`."""
    swaps = []
    for each in able:
        target = next(iter(missing), None)
        if target is None:
            break
        swaps.append((each.number, target))
        missing[target] -= 1
        if not missing[target]:
            del missing[target]
    return swaps


def _first(missing: Mapping[str, int], allowed: int) -> dict[str, int]:
    starts = {}
    for target, count in missing.items():
        if now := min(count, allowed):
            starts[target] = now
            allowed -= now
    return starts
