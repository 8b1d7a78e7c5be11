"""The figures of all groups of runs, and their differences to a baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from defeat.errors import DefeatError
from defeat.evaluation.average_precision import Floats
from defeat.evaluation.coco_metrics import CocoCurves, coco_curves, metrics_of_curves
from defeat.evaluation.confusion import confusion_matrix
from defeat.evaluation.matching import Integers
from defeat.evaluation.precision_recall import precision_recall
from defeat.report.bootstrap import FIGURES, Counts, draw_weights, resampled_figures
from defeat.report.class_matches import match_classes
from defeat.report.groups import Group
from defeat.report.runs import FinishedRun
from defeat.report.statistics import Estimate, of_resamples, over_seeds
from defeat.report.student_cost import Cost, student_cost
from defeat.report.tide import Errors, tide


class RunFigures(NamedTuple):
    """The figures of one run."""

    run: FinishedRun
    coco: dict[str, float]
    """The 12 COCO figures."""
    per_class: dict[str, float]
    """Class name to AP."""
    errors: Errors
    resampled: Floats
    """(R, 6) :data:`defeat.report.bootstrap.FIGURES` of each resample of the images."""
    curves: CocoCurves
    confusion: Integers
    """(K + 1, K + 1), see :func:`~defeat.evaluation.confusion.confusion_matrix`."""


class PairedDifference(NamedTuple):
    """The lead of a group over the baseline in one figure, on the same images."""

    estimate: Estimate
    """Difference of the means over seeds, with the interval of the bootstrap over images."""
    ahead: float
    """Share of the resamples in which it is ahead."""
    over_seeds: Estimate
    """Mean of the differences seed by seed, with the interval of Student's t; of the seeds that both have."""


class GroupFigures(NamedTuple):
    """The figures of a group of runs; intervals are over seeds unless said otherwise."""

    group: Group
    runs: list[RunFigures]
    coco: dict[str, Estimate]
    per_class: dict[str, Estimate]
    gains: dict[str, Estimate]
    """Kind of error to the AP50 that correcting it would gain."""
    counts: dict[str, Estimate]
    """Kind of error to the number of such errors."""
    difference: dict[str, PairedDifference] | None
    """One for each of :data:`defeat.report.bootstrap.FIGURES`; None for the baseline."""
    cost: Cost | None
    """None where the student cannot be built or counted."""

    @property
    def label(self) -> str:
        """Name of the group."""
        return self.group.label

    @property
    def confusion(self) -> Integers:
        """(K + 1, K + 1) sum over the runs."""
        matrix: Integers = np.sum([run.confusion for run in self.runs], axis=0)
        return matrix

    def precision(self, iou: float, label: int | None = None) -> Floats | None:
        """Average a curve of :func:`~defeat.evaluation.precision_recall.precision_recall` over the runs.

        Returns:
            (101,) at the recalls 0, 0.01, ... 1; None where there is no ground truth to measure by.
        """
        curves = [precision_recall(run.curves, iou, label) for run in self.runs]
        if None in curves:
            return None
        mean: Floats = np.mean([curve.precision for curve in curves if curve], axis=0)
        return mean


class Comparison(NamedTuple):
    """Everything that is reported."""

    groups: list[GroupFigures]
    """The baseline first."""
    baseline: Group
    classes: tuple[str, ...]
    objects: dict[str, int]
    """Class name to the number of ground truth boxes to find."""
    images: int
    resamples: int
    seed: int
    """Seed of the resamples."""
    warnings: list[str]


def compare(
    groups: Sequence[Group],
    baseline: Group,
    *,
    resamples: int,
    seed: int,
    warnings: Sequence[str] = (),
    done: Callable[[], None] = lambda: None,
    trust: bool = False,
) -> Comparison:
    """Compute the figures of all groups.

    Args:
        groups: runs with the same ground truth.
        baseline: one of ``groups``.
        resamples: number of resamples of the images.
        seed: seed of the resamples.
        warnings: warnings to report beside those of the comparison itself.
        done: called after each run.
        trust: see :func:`~defeat.report.student_cost.student_cost`.
    """
    groups = [baseline, *(group for group in groups if group is not baseline)]
    detections = baseline.runs[0].detections
    weights = draw_weights(len(detections.images), resamples, seed)
    figures: list[list[RunFigures]] = []
    for group in groups:
        figures.append([])
        for run in group.runs:
            figures[-1].append(_run_figures(run, weights))
            done()
    costs, uncounted = _costs(groups, detections.classes, trust=trust)
    labels = np.concatenate(
        [image.true_labels[~image.ignore].numpy() for image in detections.images.values()]
    )
    return Comparison(
        groups=[
            _group_figures(group, runs, None if group is baseline else figures[0], cost)
            for group, runs, cost in zip(groups, figures, costs, strict=True)
        ],
        baseline=baseline,
        classes=detections.classes,
        objects={name: int((labels == i).sum()) for i, name in enumerate(detections.classes, start=1)},
        images=len(detections.images),
        resamples=resamples,
        seed=seed,
        warnings=[*warnings, *_unequal(groups), *uncounted],
    )


def _run_figures(run: FinishedRun, weights: Counts) -> RunFigures:
    images, classes = list(run.detections.images.values()), run.detections.classes
    curves = coco_curves(images, len(classes), max_dets=run.detections.max_dets)
    coco, per_class = metrics_of_curves(curves, classes)
    matches = match_classes(images, len(classes), run.detections.max_dets)
    resampled = resampled_figures(matches, weights)
    matrix = confusion_matrix(images, len(classes))
    return RunFigures(run, coco, per_class, tide(images, len(classes)), resampled, curves, matrix)


def _group_figures(
    group: Group, runs: list[RunFigures], baseline: list[RunFigures] | None, cost: Cost | None
) -> GroupFigures:
    return GroupFigures(
        group=group,
        runs=runs,
        coco=_over_seeds([run.coco for run in runs]),
        per_class=_over_seeds([run.per_class for run in runs]),
        gains=_over_seeds([run.errors.gains for run in runs]),
        counts=_over_seeds([run.errors.counts for run in runs]),
        difference=None if baseline is None else _difference(runs, baseline),
        cost=cost,
    )


def _over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    return {name: over_seeds([run[name] for run in runs]) for name in runs[0]}


def _difference(runs: list[RunFigures], baseline: list[RunFigures]) -> dict[str, PairedDifference]:
    resampled = _mean_resampled(runs) - _mean_resampled(baseline)  # the same images in each row
    by_seeds = {run.run.seeds: run.coco for run in baseline}
    pairs = [(run.coco, by_seeds[run.run.seeds]) for run in runs if run.run.seeds in by_seeds]
    differences = {}
    for name, column in zip(FIGURES, resampled.T, strict=True):
        reached, expected = (
            over_seeds([run.coco[name] for run in group]).value for group in (runs, baseline)
        )
        numbers = column[~np.isnan(column)]
        ahead = float((numbers > 0).mean()) if len(numbers) else np.nan
        paired = over_seeds([coco[name] - other[name] for coco, other in pairs])
        differences[name] = PairedDifference(of_resamples(reached - expected, column), ahead, paired)
    return differences


def _mean_resampled(runs: Sequence[RunFigures]) -> Floats:
    mean: Floats = np.mean([run.resampled for run in runs], axis=0)
    return mean


def _costs(
    groups: Sequence[Group], classes: Sequence[str], *, trust: bool
) -> tuple[list[Cost | None], list[str]]:
    costs: dict[str, Cost | None] = {}  # by configuration, as most groups have the same student
    warnings = []
    nodes = [json.dumps(group.config["student"], sort_keys=True) for group in groups]
    for group, node in zip(groups, nodes, strict=True):
        if node in costs:
            continue
        try:
            costs[node] = student_cost(group.config["student"], classes, trust=trust)
        except DefeatError as error:
            costs[node] = None
            warnings.append(f"{group.label}: parameters and FLOPs are unknown: {error}")
    return [costs[node] for node in nodes], warnings


def _unequal(groups: Sequence[Group]) -> list[str]:
    """Warn of everything in which the groups are not treated equally."""
    warnings = []
    if len({tuple(group.steps) for group in groups}) > 1 or any(len(group.steps) > 1 for group in groups):
        warnings.append(
            f"trained for different numbers of steps: {_list({g.label: g.steps for g in groups})}"
        )
    if len({tuple(group.seeds) for group in groups}) > 1:
        warnings.append(f"trained with different seeds: {_list({g.label: g.seeds for g in groups})}")
    averaged = [g.label for g in groups if (g.config.get("callbacks") or {}).get("ema")]
    if averaged:
        warnings.append(f"figures are of averaged weights (EMA), not of raw ones: {'; '.join(averaged)}")
    alone = [group.label for group in groups if len(group.runs) == 1]
    if alone:
        warnings.append(
            f"only one seed, so there is no interval over seeds, and a difference may be due to the seed: "
            f"{'; '.join(alone)}"
        )
    data = {run.training_data for group in groups for run in group.runs} - {None}
    if len(data) > 1:
        warnings.append(
            "not all runs were trained on the same images and boxes (data.json, splits.train.sha256)"
        )
    return warnings


def _list(numbers: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{label}: {', '.join(map(str, values))}" for label, values in numbers.items())
