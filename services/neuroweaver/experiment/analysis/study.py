"""What can be compared in an experiment: its statistics, put in the form that the tests ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from neuroweaver.experiment.analysis.comparison import Comparison, OfJudgements, OfQuantiles, OfUnits
from neuroweaver.experiment.domain.metrics import Estimate, estimate_of, kind_of
from neuroweaver.experiment.domain.model import Experiment, Phase
from neuroweaver.experiment.domain.snapshot import Cell, Snapshot
from neuroweaver.mesh.wire.errors import OutOfRange
from neuroweaver.statistics import effect as effects
from neuroweaver.statistics import phases as across_phases
from neuroweaver.statistics import quantile
from neuroweaver.statistics.arm import Arm, Sample, arms
from neuroweaver.statistics.effect import Effect
from neuroweaver.statistics.estimate import Bound
from neuroweaver.statistics.moments import Moments, merged
from neuroweaver.statistics.pairwise import Judgements
from neuroweaver.statistics.quantile import QuantileArm
from neuroweaver.statistics.sketch import GroupedSketch
from neuroweaver.v1 import experiment_pb2 as pb


@dataclass(frozen=True)
class Study:
    """An experiment with its statistics in some of its phases."""

    experiment: Experiment
    snapshot: Snapshot
    phases: Sequence[Phase]

    @cached_property
    def variants(self) -> Sequence[str]:
        """The control first."""
        return [self.experiment.control, *self.experiment.treatments]

    @property
    def planned(self) -> int:
        return self.experiment.spec.planned_units_per_variant

    @property
    def confidence(self) -> float:
        return self.experiment.spec.confidence_level

    @property
    def is_fixed_horizon(self) -> bool:
        """Whether that is what the verdict rests on."""
        return self.experiment.spec.verdict_method == pb.INFERENCE_METHOD_FIXED_HORIZON

    def p_one_sided(self, comparison: Comparison, bound: Bound, *, above: bool) -> float | None:
        """By the method of the verdict: small if the effect is shown to lie above (or below) the bound."""
        if self.is_fixed_horizon:
            return comparison.p_fixed_horizon(bound, above=above)
        return comparison.p_always_valid(bound, self.confidence, above=above)

    @property
    def candidates(self) -> Sequence[str]:
        """The treatments that still get units: of the others nothing more will be learnt."""
        weights = self.experiment.phase.weights if self.experiment.phase else self.experiment.weights
        return [each for each in self.experiment.treatments if weights.get(each, 0.0) > 0]

    def units(self, variant_id: str) -> int:
        return sum(self.units_in(phase, variant_id) for phase in self.phases)

    def units_in(self, phase: Phase, variant_id: str) -> int:
        group = self.snapshot.groups.get((phase.number, variant_id))
        return group.units if group else 0

    def cells(self, variant_id: str, metric_id: str) -> Sequence[Cell]:
        """Those of the phases that have one."""
        cells = (self.snapshot.cells.get((phase.number, variant_id, metric_id)) for phase in self.phases)
        return [cell for cell in cells if cell]

    @staticmethod
    def sampled(cell: Cell) -> int:
        """The units in its sample."""
        missing: Moments | None = cell.sample.missing
        return cell.sample.observed.n + (missing.n if missing is not None else 0)

    def events(self, metric_id: str) -> int:
        """Of all variants."""
        return sum(cell.events for variant in self.variants for cell in self.cells(variant, metric_id))

    def cuts(self, metric_id: str) -> Moments | None:
        """What caps cut, see `Cell`; None without caps, or where that is not known of all units."""
        cells = [cell for variant in self.variants for cell in self.cells(variant, metric_id)]
        known = [cell.cuts for cell in cells if cell.cuts is not None]
        return merged(known, known[0].columns) if known and len(known) == len(cells) else None

    @cached_property
    def comparisons(self) -> Mapping[tuple[str, str], Comparison | None]:
        """By (metric, treatment); None: too little data."""
        return {
            (metric.metric_id, treatment): comparison
            for metric in self.experiment.spec.metrics
            for treatment, comparison in self._compared(metric).items()
        }

    def pooled_arms(self, metric: pb.ExperimentMetric) -> Mapping[str, Arm | None]:
        """Each variant's units of all phases together."""
        if metric.metric_id not in self._arms:
            self._arms[metric.metric_id] = self._pooled_arms(metric)
        return self._arms[metric.metric_id]

    @cached_property
    def by_phase(self) -> Sequence[Study]:
        """Each of the phases by itself."""
        if len(self.phases) == 1:
            return [self]
        return [Study(self.experiment, self.snapshot, [phase]) for phase in self.phases]

    def sketch(self, variant_id: str, metric_id: str) -> tuple[GroupedSketch, int]:
        """Of all phases together, and the units that its events are of."""
        cells = self.cells(variant_id, metric_id)
        merged_sketch = GroupedSketch()
        for cell in cells:
            if cell.sketch:
                merged_sketch.merge(GroupedSketch.from_bytes(cell.sketch))
        return merged_sketch, sum(map(self.sampled, cells))

    def quantile_arm(self, metric: pb.ExperimentMetric, variant_id: str) -> QuantileArm | None:
        sketch, units = self.sketch(variant_id, metric.metric_id)
        return sketch.arm(units, metric.quantile.quantile) if units >= 2 and sketch.events else None

    def judgements(self, metric_id: str, treatment: str) -> Judgements:
        """Of the treatment against the control, on whichever side it was entered."""
        control, judgements = self.experiment.control, Judgements()
        tallies, none = self.snapshot.tallies, Judgements()
        for phase in self.phases:
            judgements += tallies.get((phase.number, control, treatment, metric_id), none)
            turned = tallies.get((phase.number, treatment, control, metric_id), none)
            judgements += replace(turned, wins=turned.losses, losses=turned.wins)
        return judgements

    @cached_property
    def _arms(self) -> dict[str, Mapping[str, Arm | None]]:
        return {}

    def _pooled_arms(self, metric: pb.ExperimentMetric) -> Mapping[str, Arm | None]:
        samples = [[cell.sample for cell in self.cells(v, metric.metric_id)] for v in self.variants]
        shape = next((sample for each in samples for sample in each), None)
        if shape is None:
            return dict.fromkeys(self.variants)
        pooled = [_pooled(each, shape) for each in samples]
        return dict(zip(self.variants, arms(kind_of(metric).arms, pooled), strict=True))

    def _compared(self, metric: pb.ExperimentMetric) -> Mapping[str, Comparison | None]:
        treatments = self.experiment.treatments
        estimate = estimate_of(metric)
        if estimate is Estimate.WIN_RATE:
            judged = {each: self.judgements(metric.metric_id, each) for each in treatments}
            return {each: OfJudgements(of, self.planned) if of.count else None for each, of in judged.items()}
        if not self.events(metric.metric_id):
            return dict.fromkeys(treatments)
        if estimate is Estimate.QUANTILE:
            return self._by_quantiles(metric)
        return self._by_units(metric)

    def _by_units(self, metric: pb.ExperimentMetric) -> Mapping[str, Comparison | None]:
        by_phase = [each.pooled_arms(metric) for each in self.by_phase]
        result: dict[str, Comparison | None] = {}
        for treatment in self.experiment.treatments:
            control = self.experiment.control
            result[treatment] = self._over_phases(
                effects.effect(each[control], each[treatment]) for each in by_phase
            )
        return result

    def _by_quantiles(self, metric: pb.ExperimentMetric) -> Mapping[str, Comparison | None]:
        by_phase = [{v: each.quantile_arm(metric, v) for v in self.variants} for each in self.by_phase]
        result: dict[str, Comparison | None] = {}
        for treatment in self.experiment.treatments:
            pairs = [(each[self.experiment.control], each[treatment]) for each in by_phase]
            both = [(control, treated) for control, treated in pairs if control and treated]
            if len(both) == 1:
                result[treatment] = OfQuantiles(*both[0], self.planned)
            else:
                result[treatment] = self._over_phases(quantile.effect(*arms) for arms in both)
        return result

    def _over_phases(self, by_phase: Iterable[Effect | None]) -> Comparison | None:
        total = across_phases.combined([each for each in by_phase if each])
        return OfUnits(total, self.planned) if total else None


def study(experiment: Experiment, snapshot: Snapshot, phase: int = 0) -> Study:
    """phase: 0 for all of them. Raises OutOfRange if there is no such phase."""
    if not phase:
        return Study(experiment, snapshot, experiment.phases)
    chosen = [each for each in experiment.phases if each.number == phase]
    if not chosen:
        raise OutOfRange(f"{experiment.test_id} has {len(experiment.phases)} phases, and no phase {phase}")
    return Study(experiment, snapshot, chosen)


def _pooled(samples: Sequence[Sample], shape: Sample) -> Sample:
    if len(samples) == 1:
        return samples[0]
    lacking = [each.missing for each in samples if each.missing is not None]
    return Sample(
        merged([each.observed for each in samples], shape.observed.columns),
        None if shape.missing is None else merged(lacking, shape.missing.columns),
    )
