"""How often the statistics of experiments err, how much they find, and what they cost.

    python bench/experiment_statistics.py [--runs 4000] [section ...]

Sections: peeking, covariates, adaptive, winsorized, ratio_test, coverage, planned, cost; all by default.
Every figure comes from seeded draws; a share of 5 % over 4,000 runs has a standard error of 0.3 points.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "services"))

import numpy as np
from scipy.special import gammaln

from neuroweaver.statistics import (
    bayesian,
    confidence_sequence,
    fixed,
    multiplicity,
    pairwise,
    power,
    quantile,
    thompson,
)
from neuroweaver.statistics.arm import Kind, Sample, arms
from neuroweaver.statistics.baseline import MeanBaseline, ProportionBaseline
from neuroweaver.statistics.effect import Effect, effect
from neuroweaver.statistics.moments import Moments
from neuroweaver.statistics.phases import combined
from neuroweaver.statistics.sketch import GROUPS, GroupedSketch
from neuroweaver.statistics.winsorization import Caps, calibrated

LOOKS = 100
Draw = Callable[[np.random.Generator, int, int], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    sections = (peeking, covariates, adaptive, winsorized, ratio_test, coverage, planned, cost)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("sections", nargs="*", choices=[*(s.__name__ for s in sections), []])
    wanted = parser.parse_args()
    for section in sections:
        if not wanted.sections or section.__name__ in wanted.sections:
            began = time.perf_counter()
            print(f"\n## {section.__name__}: {str(section.__doc__).strip()}\n")
            section(wanted.runs)
            print(f"\n({time.perf_counter() - began:.0f} s)", flush=True)


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.2%}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def peeking(runs: int) -> None:
    """A/A tests with an interval ever excluding 0, 100 looks: fixed 95 %, always-valid 95 %, one-sided."""
    row("outcome", "units an arm", "planned", "naive", "always-valid", "one-sided")
    row(*["---"] * 6)
    even, uneven = ((1000, 1000), (100, 100)), ((19_000, 1000), (1900, 100))
    cases: list[tuple[str, Draw, tuple[tuple[int, int], tuple[int, int]], int]] = [
        ("normal", normal, even, 2000),
        ("Bernoulli 0.1", bernoulli(0.1), even, 2000),
        ("Bernoulli 0.1, planned for the first look", bernoulli(0.1), even, 1000),
        ("Bernoulli 0.1, planned far beyond", bernoulli(0.1), even, 100_000),
        ("Bernoulli 0.001", bernoulli(0.001), even, 2000),
        ("lognormal, sigma 1", lognormal(1.0), even, 2000),
        ("lognormal, sigma 2", lognormal(2.0), even, 2000),
        ("1 % buy, lognormal amounts", purchases, even, 2000),
        ("normal, 95 to 5", normal, uneven, 4000),
        ("Bernoulli 0.01, 95 to 5", bernoulli(0.01), uneven, 4000),
        ("Bernoulli 0.003, 95 to 5", bernoulli(0.003), uneven, 4000),
        ("1 % buy, 95 to 5", purchases, uneven, 4000),
        ("1 % buy, 95 to 5, from 500", purchases, ((9500, 500), (950, 50)), 2000),
        ("lognormal, sigma 1, 95 to 5", lognormal(1.0), ((19_000, 1000), (190, 10)), 1000),
    ]
    for number, (name, draw, (first, step), planned_units) in enumerate(cases):
        generator = np.random.default_rng(number)
        sizes = [np.array([f] + [s] * (LOOKS - 1)) for f, s in zip(first, step, strict=True)]
        n, a, v = moments(draw, generator, sizes[0], runs, pseudo=name.startswith("Bernoulli"))
        m, b, w = moments(draw, generator, sizes[1], runs, pseudo=name.startswith("Bernoulli"))
        z = (b - a) / np.sqrt(np.maximum(v / n + w / m, 1e-300))
        own, other = cautious(a, v, n, w, m), cautious(b, w, m, v, n)
        watched = (b - a) / np.sqrt(np.maximum(own / n + other / m, 1e-300))
        units = 2 / (1 / n + 1 / m)
        p = confidence_sequence.p_value(watched, confidence_sequence.mixing(units, planned_units, 0.05))
        one = confidence_sequence.p_value_one_sided(
            watched, confidence_sequence.mixing(units, planned_units, 0.1)
        )
        span = f"{first[0]:,}/{first[1]:,} to {int(n[-1, 0]):,}/{int(m[-1, 0]):,}"
        row(name, span, f"{planned_units:,}", ever(np.abs(z) > 1.96), ever(p < 0.05), ever(one < 0.05))


def covariates(runs: int) -> None:
    """A/A tests through the estimates: ratios, CUPED, quantiles; 20 looks from 500 to 5,000 units an arm."""
    row("metric", "runs", "always-valid, ever")
    row(*["---"] * 3)
    for name, found in (
        ("cost per request", ratio_effects),
        ("cost per request, heavy-tailed, p99 caps of both parts", capped_ratio_effects),
        ("CUPED, correlation 0.8, 30 % missing", cuped_effects),
        ("CUPED on a ratio, two covariates", cuped_ratio_effects),
    ):
        generator = np.random.default_rng(1)
        some = runs // 8
        false = sum(any(significant(e) for e in found(generator)) for _ in range(some))
        row(name, some, false / some)
    generator = np.random.default_rng(2)
    for level in (0.5, 0.95):
        some = runs // 16
        row(
            f"quantile {level:g} of all events",
            some,
            sum(quantile_ever(generator, level) for _ in range(some)) / some,
        )


def adaptive(runs: int) -> None:
    """A/A tests under Thompson sampling, shares of 10 %, 30 phases of 1,000 units, a look after each."""
    generator = np.random.default_rng(3)
    some, false, pooled = runs // 8, 0, 0
    for _ in range(some):
        past: list[Effect] = []
        counts, crossed, naive = np.zeros((2, 2)), False, False
        share = 0.5
        for _ in range(30):
            units = np.array([1000 - (treated := int(generator.binomial(1000, share))), treated])
            successes = generator.binomial(units, 0.1)
            counts += np.stack((successes, units))
            both = [proportion(int(s), int(n)) for s, n in zip(successes, units, strict=True)]
            if (found := effect(*both)) is not None:
                past.append(found)
            crossed |= significant(combined(past), 1000)
            whole = [proportion(int(s), int(n)) for s, n in counts.T]
            overall = fixed.infer(effect(*whole), 0.95)
            naive |= overall is not None and overall.p_value < 0.05
            beliefs = [thompson.Belief(arm.units, arm.value, arm.std_error) for arm in whole]
            share = thompson.weights(beliefs, 0.05, higher_is_better=True)[1]
        false += crossed
        pooled += naive
    row("runs", "fixed 95 % of the pooled counts, ever", "always-valid by phase, ever")
    row(*["---"] * 3)
    row(some, pooled / some, false / some)


def winsorized(runs: int) -> None:
    """A/A tests of values that come with delay, caps taken again as data come: 4,000 units, 28 days."""
    row("values", "exposures", "runs", "uncapped", "p99 caps", "p99 caps, window of a week")
    row(*["---"] * 6)
    some = runs // 10
    for name, draw in (
        ("all buy, lognormal, whales", buys(1.0, 1.5)),
        ("5 % buy, lognormal, whales", buys(0.05, 2.0)),
        ("2 % buy: caps come and go", buys(0.02, 2.0)),
        ("1.2 % buy: hardly ever a cap", buys(0.012, 2.0)),
        ("t with 2 degrees of freedom, both caps", student),
        ("one a day, Poisson", steady),
    ):
        for first_day in (False, True):
            shares = []
            for is_capped, window in ((False, None), (True, None), (True, 7.0)):
                generator = np.random.default_rng(5)
                found = (
                    delayed_ever(generator, draw, first_day=first_day, is_capped=is_capped, window=window)
                    for _ in range(some)
                )
                shares.append(sum(found) / some)
            row(name, "on the first day" if first_day else "over 3 weeks", some, *shares)


def ratio_test(runs: int) -> None:
    """The sequential test of the split: false alarms over 100 looks from 10 to 1,000,000 units."""
    row(
        "weights",
        "below 5 %, ever",
        "below 0.1 %, ever",
        "units until found at 0.1 %, median: 1 % of B lost",
        "10 %",
    )
    row(*["---"] * 5)
    steps = np.diff(np.concatenate(([0], np.geomspace(10, 1_000_000, LOOKS).astype(int))))
    for number, weights in enumerate(((0.5, 0.5), (0.95, 0.05), (0.97, 0.01, 0.01, 0.01))):
        generator = np.random.default_rng(number)
        p = split_p_values(generator, steps, weights, weights, runs)
        found = []
        for lost in (0.01, 0.1):
            damaged = np.array(weights) * [1, 1 - lost, *[1] * (len(weights) - 2)]
            hits = split_p_values(generator, steps, weights, damaged / damaged.sum(), runs // 10) < 0.001
            first = np.where(hits.any(axis=0), steps.cumsum()[hits.argmax(axis=0)], np.inf)
            median = float(np.median(first))
            found.append(f"{int(median):,}" if math.isfinite(median) else "beyond 1,000,000")
        row(weights, ever(p < 0.05), ever(p < 0.001), *found)


def coverage(runs: int) -> None:
    """Share of 95 % intervals that hold the truth, at one look."""
    row("interval", "runs", "absolute", "relative")
    row(*["---"] * 4)
    generator = np.random.default_rng(5)
    for name, some, draw in (
        ("Welch, gamma, 150 and 300 units", runs, gamma_effect),
        ("Welch, lognormal sigma 1, 2,000 each", runs // 2, lognormal_effect),
        ("ratio, 400 and 300 units", runs // 2, ratio_effect),
        ("Newcombe, 10 % and 12 % of 1,000", runs, share_effect),
        ("CUPED, 400 and 600 units, half without covariate", runs // 2, cuped_effect),
    ):
        held = np.array([holds(*draw(generator)) for _ in range(some)]).mean(axis=0)
        row(name, some, float(held[0]), float(held[1]))
    for level, units in ((0.5, 1000), (0.95, 1000), (0.99, 1000), (0.99, 10_000)):
        some = runs // 8
        row(
            f"quantile {level:g}, {units:,} units of 4 requests",
            some,
            *quantile_coverage(generator, level, units, some),
        )
    judgements = generator.multinomial(100, [0.35, 0.2, 0.45], runs)
    intervals = [
        pairwise.interval(pairwise.Judgements(int(w), int(t), int(b)), 0.95) for w, b, t in judgements
    ]
    row("win rate, 100 prompts", runs, sum(i.lower <= 0.575 <= i.upper for i in intervals if i) / runs, "")


def planned(runs: int) -> None:
    """Power of plans for 80 %, simulated."""
    row("plan", "units an arm", "power simulated")
    row(*["---"] * 3)
    generator = np.random.default_rng(6)
    for name, design, delta, draw in (
        ("mean, always-valid", power.Design(MeanBaseline(0, 1)), 0.1, normal),
        ("share 10 %, always-valid", power.Design(ProportionBaseline(0.1)), 0.02, bernoulli(0.1)),
        ("mean, fixed", power.Design(MeanBaseline(0, 1), is_always_valid=False), 0.1, normal),
        (
            "share 10 %, fixed",
            power.Design(ProportionBaseline(0.1), is_always_valid=False),
            0.02,
            bernoulli(0.1),
        ),
    ):
        units = power.plan(design, effect=delta).units[0]
        steps = np.diff(np.linspace(0, units, LOOKS + 1).astype(int))
        shifted = bernoulli(0.12) if draw is not normal else normal
        n, a, v = moments(draw, generator, steps, runs, pseudo=draw is not normal)
        _, b, w = moments(shifted, generator, steps, runs, pseudo=draw is not normal)
        z = (b + (delta if draw is normal else 0) - a) / np.sqrt((v + w) / n)
        p = confidence_sequence.p_value(z, confidence_sequence.mixing(n, units, 0.05))
        row(name, f"{units:,}", ever(p < 0.05) if design.is_always_valid else float((z[-1] > 1.96).mean()))


def cost(_runs: int) -> None:
    """Milliseconds, best of 5."""
    generator = np.random.default_rng(7)
    rows = generator.gamma(2, 1, (1000, 2))
    held = Moments.of(rows)
    values, groups, units = requests(generator, 25_000)
    sketch = GroupedSketch()
    sketch.add(groups, values)
    samples = [metric_samples(generator, number) for number in range(20)]
    for name, work in (
        ("analysis of 4 variants, 20 metrics (8 with CUPED)", lambda: analysed(samples)),
        ("sums of 1,000 changed units, two columns", lambda: held - Moments.of(rows) + Moments.of(rows)),
        ("one unit changed", lambda: held - Moments.of(rows[:1]) + Moments.of(rows[:1])),
        (f"{len(values):,} events into a sketch", lambda: GroupedSketch().add(groups, values)),
        ("a quantile from a sketch", lambda: sketch.arm(units, 0.99)),
        ("a sketch of all those to bytes", sketch.to_bytes),
        (
            "an always-valid plan with its curve",
            lambda: power.plan(power.Design(MeanBaseline(10, 3)), effect=0.1),
        ),
    ):
        best = math.inf
        for _ in range(5):
            began = time.perf_counter()
            work()
            best = min(best, time.perf_counter() - began)
        print(f"- {name}: {best * 1e3:.2f} ms")
    print(f"- bytes of that sketch: {len(sketch.to_bytes()):,}, rank error {sketch.rank_error:.4%}")


def ever(crossed: np.ndarray) -> float:
    return float(crossed.any(axis=0).mean())


def normal(generator: np.random.Generator, units: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    total = generator.normal(0, math.sqrt(units), runs)
    return total, total**2 / units + generator.chisquare(units - 1, runs)


def bernoulli(rate: float) -> Draw:
    def draw(generator: np.random.Generator, units: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
        total = generator.binomial(units, rate, runs).astype(float)
        return total, total

    return draw


def lognormal(sigma: float) -> Draw:
    def draw(generator: np.random.Generator, units: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.exp(sigma * generator.standard_normal((runs, units), dtype=np.float32))
        return values.sum(axis=1, dtype=float), np.square(values, dtype=float).sum(axis=1)

    return draw


def purchases(generator: np.random.Generator, units: int, runs: int) -> tuple[np.ndarray, np.ndarray]:
    buyers = generator.binomial(units, 0.01, runs)
    values = np.exp(generator.normal(0, 1, (runs, int(buyers.max()) or 1)))
    values[np.arange(values.shape[1]) >= buyers[:, None]] = 0.0
    return values.sum(axis=1), np.square(values).sum(axis=1)


def moments(draw: Draw, generator: np.random.Generator, sizes: np.ndarray, runs: int, *, pseudo: bool):
    """Units, mean and variance at every look: (looks, 1), (looks, runs), (looks, runs)."""
    blocks = [draw(generator, int(size), runs) for size in sizes]
    n = sizes.cumsum()[:, None].astype(float)
    total, squares = (np.stack([block[i] for block in blocks]).cumsum(axis=0) for i in (0, 1))
    if pseudo:
        share = (total + 1) / (n + 2)
        return n, total / n, share * (1 - share)
    return n, total / n, (squares / n - (total / n) ** 2) * n / (n - 1)


def cautious(
    value: np.ndarray, spread: np.ndarray, units: np.ndarray, other: np.ndarray, other_units: np.ndarray
) -> np.ndarray:
    """As Effect.watched takes the spread of a smaller arm with few events."""
    is_cautious = (value**2 * units <= 300 * spread) & (1.5 * units < other_units) & (other > spread)
    return np.where(is_cautious, other, spread)


def buys(share: float, sigma: float):
    """Of each unit: purchases in the weeks after its exposure, each unit on a scale of its own."""

    def draw(generator: np.random.Generator, units: int):
        counts = (generator.random(units) < share) * (1 + generator.poisson(3, units))
        unit = np.repeat(np.arange(units), counts)
        scale = generator.lognormal(0, 1, units)[unit]
        return unit, generator.exponential(5, len(unit)), scale * generator.lognormal(0, sigma, len(unit))

    return draw


def student(generator: np.random.Generator, units: int):
    unit = np.repeat(np.arange(units), 3)
    return unit, generator.exponential(5, len(unit)), generator.standard_t(2, len(unit))


def steady(generator: np.random.Generator, units: int):
    unit = np.repeat(np.arange(units), generator.poisson(28, units))
    return unit, generator.uniform(0, 28, len(unit)), np.ones(len(unit))


def delayed_ever(
    generator: np.random.Generator, draw, *, first_day: bool, is_capped: bool, window: float | None
) -> bool:
    """Whether any look at an A/A test of 28 days finds an effect; caps as the service takes them."""
    units, calibration = 4000, 1000
    exposed = np.sort(generator.uniform(0, 1 if first_day else 21, units))
    arm = generator.integers(0, 2, units)
    unit, delay, value = draw(generator, units)
    if window is not None:
        unit, delay, value = (each[delay <= window] for each in (unit, delay, value))
    order = np.argsort(exposed[unit] + delay)
    unit, when, value = unit[order], (exposed[unit] + delay)[order], value[order]
    lower = 0.01 if value.min() < 0 else None
    total, at, seen, complete, caps = np.zeros(units), 0, 0, 0, Caps()
    for day in range(1, 29):
        n, until = np.searchsorted(exposed, day), np.searchsorted(when, day)
        np.add.at(total, unit[at:until], value[at:until])
        at = until
        is_waiting = window is not None and complete < n
        if is_capped and n >= calibration and (n + until >= 1.25 * seen or is_waiting):
            is_complete = exposed[:n] + (window or 0) <= day
            seen, complete = n + until, int(is_complete.sum())
            ready = total[:n][is_complete]
            caps = calibrated(ready, lower, 0.99) if complete >= calibration else Caps()
        if n < 1000 or (is_capped and complete < calibration):
            continue
        held = caps.apply(total[:n])
        if significant(effect(*arms(Kind.MEAN, [summed(held[arm[:n] == each]) for each in (0, 1)]))):
            return True
    return False


def summed(values: np.ndarray) -> Sample:
    """Without the care of `Moments.of`, in a tenth of its time."""
    sums = float(values.sum()), float(np.square(values).sum())
    return Sample(Moments(len(values), 1, sums, (0.0, 0.0)))


def split_p_values(
    generator: np.random.Generator, steps: np.ndarray, weights, truth, runs: int
) -> np.ndarray:
    counts = generator.multinomial(steps[:, None], truth, (len(steps), runs)).cumsum(axis=0)
    total, factors = counts.sum(axis=-1), []
    for concentration in (100, 10_000):
        prior = concentration * np.array(weights)
        parts = gammaln(prior + counts) - gammaln(prior) - counts * np.log(weights)
        log_factor = gammaln(concentration) - gammaln(concentration + total) + parts.sum(axis=-1)
        factors.append(np.exp(np.minimum(log_factor, 700)))
    return 1 / np.maximum(1.0, np.mean(factors, axis=0))


def significant(found: Effect | None, planned_units: float = 2000) -> bool:
    inference = confidence_sequence.infer(found, 0.95, planned_units) if found is not None else None
    return inference is not None and inference.p_value < 0.05


def compared(kind: Kind, control: np.ndarray, treatment: np.ndarray) -> Effect | None:
    return effect(*arms(kind, [Sample(Moments.of(control)), Sample(Moments.of(treatment))]))


def proportion(successes: int, units: int):
    sums = (float(successes), float(successes))
    return arms(Kind.PROPORTION, [Sample(Moments(units, 1, sums, (0.0, 0.0)))])[0]


def spending(generator: np.random.Generator, units: int, cost: float = 1.0) -> np.ndarray:
    counts = 1 + generator.poisson(generator.gamma(2.0, 2.0, units))
    return np.stack((generator.gamma(counts, cost) * generator.lognormal(0, 0.5, units), counts), axis=1)


def correlated(generator: np.random.Generator, units: int, lift: float = 0.0) -> np.ndarray:
    before = generator.normal(0, 1, units)
    return np.stack((0.8 * before + 0.6 * generator.normal(0, 1, units) + 10 + lift, before), axis=1)


def looks() -> Iterator[int]:
    yield from np.linspace(500, 5000, 20).astype(int).tolist()


def ratio_effects(generator: np.random.Generator) -> Iterator[Effect | None]:
    control, treatment = spending(generator, 5000), spending(generator, 5000)
    return (compared(Kind.RATIO, control[:n], treatment[:n]) for n in looks())


def capped_ratio_effects(generator: np.random.Generator) -> Iterator[Effect | None]:
    """A twentieth of the units have costs and no request. Caps are taken again at every look."""
    requested = np.ceil(generator.lognormal(1, 1, (2, 5000))) * (generator.random((2, 5000)) > 0.05)
    costs = generator.lognormal(0, 1.5, (2, 5000)) * np.maximum(requested, 1)
    rows = np.stack((costs, requested), axis=2)
    for n in looks():
        caps = [calibrated(part.ravel(), None, 0.99) for part in np.moveaxis(rows[:, :n], 2, 0)]
        control, treatment = np.stack([each.apply(rows[:, :n, i]) for i, each in enumerate(caps)], axis=2)
        yield compared(Kind.RATIO, control, treatment)


def cuped_effects(generator: np.random.Generator) -> Iterator[Effect | None]:
    rows = [correlated(generator, 5000) for _ in range(2)]
    has = [generator.random(5000) < 0.7 for _ in range(2)]
    for n in looks():
        samples = [
            Sample(Moments.of(r[:n][h[:n]]), Moments.of(r[:n][~h[:n], :1]))
            for r, h in zip(rows, has, strict=True)
        ]
        yield effect(*arms(Kind.MEAN, samples))


def cuped_ratio_effects(generator: np.random.Generator) -> Iterator[Effect | None]:
    rows = []
    for _ in range(2):
        taste, pace = generator.gamma(4, 0.25, 5000), generator.gamma(2, 3, 5000)
        counts = 1 + generator.poisson(pace, (2, 5000))
        costs = generator.gamma(counts * taste, 1.0)
        rows.append(np.stack((costs[1], counts[1], costs[0], counts[0]), axis=1))
    return (compared(Kind.RATIO, rows[0][:n], rows[1][:n]) for n in looks())


def requests(
    generator: np.random.Generator, units: int, lift: float = 1.0
) -> tuple[np.ndarray, np.ndarray, int]:
    counts = 1 + generator.poisson(generator.gamma(1.0, 3.0, units))
    values = np.repeat(generator.lognormal(0, 0.6, units), counts) * generator.lognormal(0, 0.8, counts.sum())
    return values * 100 * lift, np.repeat(generator.integers(0, GROUPS, units), counts), units


def quantile_arm(sample: tuple[np.ndarray, np.ndarray, int], level: float):
    values, groups, units = sample
    return quantile.of_events(values, np.ones(len(values)), groups, units, level)


def quantile_ever(generator: np.random.Generator, level: float) -> bool:
    blocks = [[requests(generator, 250) for _ in range(20)] for _ in range(2)]
    for look in range(2, 21):
        both = [
            quantile_arm((*(np.concatenate([b[i] for b in arm[:look]]) for i in (0, 1)), 250 * look), level)
            for arm in blocks
        ]
        found = quantile.infer_always_valid(both[0], both[1], 0.95, 2000)
        if found is not None and found.p_value < 0.05:
            return True
    return False


def quantile_coverage(
    generator: np.random.Generator, level: float, units: int, runs: int
) -> tuple[float, float]:
    truth = float(np.quantile(requests(np.random.default_rng(99), 1_000_000)[0], level))
    held = []
    for _ in range(runs):
        both = (
            quantile_arm(requests(generator, units), level),
            quantile_arm(requests(generator, units, 1.1), level),
        )
        found = quantile.infer(*both, 0.95)
        if found is not None:
            held.append(inside(found, 0.1 * truth, 0.1))
    absolute, relative = np.mean(held, axis=0)
    return float(absolute), float(relative)


def gamma_effect(generator: np.random.Generator):
    return compared(Kind.MEAN, generator.gamma(2, 1, 150), generator.gamma(2, 1.2, 300)), 0.4, 0.2


def lognormal_effect(generator: np.random.Generator):
    return compared(Kind.MEAN, *generator.lognormal(0, 1, (2, 2000))), 0.0, 0.0


def ratio_effect(generator: np.random.Generator):
    return (
        compared(Kind.RATIO, spending(generator, 400), spending(generator, 300, 1.2)),
        0.2 * math.exp(0.125),
        0.2,
    )


def share_effect(generator: np.random.Generator):
    successes = generator.binomial(1000, [0.1, 0.12])
    return effect(*(proportion(int(s), 1000) for s in successes)), 0.02, 0.2


def cuped_effect(generator: np.random.Generator):
    rows = correlated(generator, 400), correlated(generator, 600, 0.2)
    samples = [Sample(Moments.of(r[: len(r) // 2]), Moments.of(r[len(r) // 2 :, :1])) for r in rows]
    return effect(*arms(Kind.MEAN, samples)), 0.2, 0.02


def holds(found: Effect | None, absolute: float, relative: float) -> tuple[bool, bool]:
    return inside(fixed.infer(found, 0.95), absolute, relative)


def inside(inference, absolute: float, relative: float) -> tuple[bool, bool]:
    in_relative = (
        inference.relative is None or inference.relative.lower <= relative <= inference.relative.upper
    )
    return inference.absolute.lower <= absolute <= inference.absolute.upper, in_relative


def metric_samples(generator: np.random.Generator, number: int) -> tuple[Kind, list[Sample]]:
    kind = (Kind.MEAN, Kind.RATIO, Kind.PROPORTION, Kind.MEAN, Kind.RATIO)[number % 5]
    columns = kind.outcomes * (2 if number % 5 >= 3 else 1)
    samples = []
    for _ in range(4):
        rows = generator.gamma(2, 1, (5000, columns))
        rows = (rows < 1).astype(float) if kind is Kind.PROPORTION else rows
        missing = Moments.of(rows[:100, : kind.outcomes]) if columns > kind.outcomes else None
        samples.append(Sample(Moments.of(rows), missing))
    return kind, samples


def analysed(metrics: list[tuple[Kind, list[Sample]]]) -> None:
    p_values: list[float | None] = []
    for kind, samples in metrics:
        control, *treatments = found = arms(kind, samples)
        for arm in found:
            fixed.arm_interval(arm, 0.95)
        for treatment in treatments:
            shown = effect(control, treatment)
            p_values.append(fixed.infer(shown, 0.95).p_value)
            p_values.append(confidence_sequence.infer(shown, 0.95, 5000).p_value)
            confidence_sequence.p_one_sided(shown, 0.95, 5000)
            confidence_sequence.p_one_sided(shown, 0.95, 5000, above=False)
            bayesian.posterior(shown, 0.95, bayesian.Prior(), higher_is_better=True)
            power.detectable_now(shown, 0.95, 5000)
    multiplicity.adjusted(p_values, multiplicity.Correction.HOLM)


if __name__ == "__main__":
    main()
