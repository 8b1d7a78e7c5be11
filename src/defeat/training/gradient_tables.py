"""A measurement of the losses' gradients as tables, as Markdown and CSV, and as a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, get_args

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Chart

from defeat.distill import Distiller
from defeat.distill.terms import Maps
from defeat.render import Table
from defeat.training.loss_gradients import DETECTION, Measurement


class Figure(NamedTuple):
    """One measured number; nan where there is nothing."""

    kind: str
    """value, gradient (L2 norm) or share (of the detection loss's gradient)."""
    loss: str
    maps: str
    """neck or stages; empty for a value without levels."""
    stride: int | None
    """None for all levels jointly: those that the loss compares, at the maps it acts through."""
    start: float
    fitted: float


def figures(measured: Measurement, distiller: Distiller) -> Iterator[Figure]:
    """Yield all numbers of a measurement, loss by loss."""
    for loss in measured.fitted:
        yield from _values(measured, distiller, loss)
        for maps in get_args(Maps):
            yield from _gradients(measured, distiller, loss, maps)


def _values(measured: Measurement, distiller: Distiller, loss: str) -> Iterator[Figure]:
    readings = measured.start[loss], measured.fitted[loss]
    yield Figure("value", loss, "", None, readings[0].value, readings[1].value)
    if loss in distiller.gradient_sites:
        maps, strides = distiller.gradient_sites[loss]
        by_level = [reading.values.mean(0).tolist() for reading in readings]
        if len(by_level[0]) == len(strides):
            for stride, start, fitted in zip(strides, *by_level, strict=True):
                yield Figure("value", loss, maps, stride, start, fitted)


def _gradients(measured: Measurement, distiller: Distiller, loss: str, maps: Maps) -> Iterator[Figure]:
    compared = distiller.gradient_sites[loss].strides if _acts_through(distiller, loss, maps) else None
    every = [m.stride for m in measured.maps if m.maps == maps]
    chosen = [stride for stride in every if compared is None or stride in compared]

    def norms(loss: str, strides: Sequence[int]) -> list[float]:
        return [measured.norm(r[loss], maps, strides) for r in (measured.start, measured.fitted)]

    joint, detection = norms(loss, chosen), norms(DETECTION, chosen)
    if math.isnan(joint[1]):
        return
    for stride in chosen:
        yield Figure("gradient", loss, maps, stride, *norms(loss, [stride]))
    yield Figure("gradient", loss, maps, None, *joint)
    shares = (a / b if b else math.nan for a, b in zip(joint, detection, strict=True))
    yield Figure("share", loss, maps, None, *shares)


def _acts_through(distiller: Distiller, loss: str, maps: str) -> bool:
    return loss in distiller.gradient_sites and distiller.gradient_sites[loss].maps == maps


def gradient_shares(measured: Measurement, distiller: Distiller) -> dict[str, float]:
    """Return the gradient of each of the distiller's losses where it acts, over the detection loss's.

    They are those with fitted adapters.
    """
    return {
        f.loss: f.fitted
        for f in figures(measured, distiller)
        if f.kind == "share" and _acts_through(distiller, f.loss, f.maps)
    }


def gradient_tables(measured: Measurement, distiller: Distiller) -> list[Table]:
    """Arrange a measurement for reading: gradients at neck and stages, then values."""
    found = list(figures(measured, distiller))
    tables = [
        _gradient_table("neck", "Gradient at the student's neck, by stride", found),
        _gradient_table("stages", "Gradient at the student's backbone stages, by stride", found),
        _value_table(found, distiller.weights),
    ]
    return [table for table in tables if table.rows]


def _gradient_table(maps: str, title: str, found: Sequence[Figure]) -> Table:
    at = {(f.kind, f.loss, f.stride): f for f in found if f.maps == maps}
    strides = sorted({f.stride for f in found if f.maps == maps and f.stride is not None})
    rows = [
        [
            loss,
            short(all_levels.start),
            *(short(at[kind, loss, s].fitted if (kind, loss, s) in at else math.nan) for s in strides),
            short(all_levels.fitted),
            short(at["share", loss, None].fitted),
        ]
        for (kind, loss, stride), all_levels in at.items()
        if kind == "gradient" and stride is None
    ]
    return Table(["loss", "start", *map(str, strides), "all", "share"], rows, title)


def _value_table(found: Sequence[Figure], weights: Mapping[str, float]) -> Table:
    values = [f for f in found if f.kind == "value"]
    by_level = {(f.loss, f.stride): f.fitted for f in values if f.stride is not None}
    strides = sorted({stride for _, stride in by_level if stride is not None})
    rows = [
        [
            f.loss,
            short(weights.get(f.loss, math.nan)),
            short(f.start),
            *(short(by_level.get((f.loss, s), math.nan)) for s in strides),
            short(f.fitted),
        ]
        for f in values
        if f.stride is None
    ]
    columns = ["loss", "weight", "start", *map(str, strides), "all"]
    return Table(columns, rows, "Value, weighted, by stride")


def weight_table(measured: Measurement, distiller: Distiller, weights: Mapping[str, float]) -> Table:
    """Old and new weights of a balanced distiller, whose weights are still the old ones."""
    share = gradient_shares(measured, distiller)
    rows = [
        [loss, short(share[loss]), short(distiller.shares[loss]), f"{distiller.weights[loss]:g}", f"{new:g}"]
        for loss, new in weights.items()
    ]
    return Table(["loss", "share", "wanted", "weight", "new weight"], rows, "Weights, balanced")


PULLS = 5.0
"""A loss is told if its gradient is this many times that of the student's own loss."""


def strong_losses(measured: Measurement, distiller: Distiller) -> list[tuple[str, str]]:
    """Say which losses outweigh the student's own, the strongest first, and what to do about each."""
    shares = {loss: x for loss, x in gradient_shares(measured, distiller).items() if x >= PULLS}
    return [
        (
            f"{loss} pulls {share:.0f} times as hard as the student's own loss",
            f"distiller.balance=gradient, or a weight of {short(distiller.weights[loss] / share)} "
            f"({distiller.key(loss)})",
        )
        for loss, share in sorted(shares.items(), key=lambda item: -item[1])
    ]


def short(number: float) -> str:
    """Three digits, or two and a power of ten, in at most six characters."""
    if math.isnan(number):
        return "-"
    if number == 0 or math.isinf(number) or 0.01 <= abs(number) < 999.5:
        return f"{number:.3g}"
    digits, power = f"{number:.1e}".split("e")
    return f"{digits}e{int(power)}"


def as_csv(measured: Sequence[Figure]) -> str:
    """Write one line for each figure, in full precision."""
    rows = [figure._replace(stride=figure.stride or "all") for figure in measured]  # type: ignore[arg-type]
    return Table(Figure._fields, rows).as_csv()


def chart(found: Sequence[Figure]) -> Chart:
    """Draw the share of each loss in the gradient, at the start and with fitted adapters, as bars."""
    shares = [f for f in found if f.kind == "share" and math.isfinite(f.fitted)]
    figure = Chart(figsize=(8, 1.2 + 0.35 * len(shares)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = range(len(shares))
    axes.barh([row - 0.2 for row in rows], [f.start for f in shares], 0.4, label="start", color="#6b7076")
    axes.barh([row + 0.2 for row in rows], [f.fitted for f in shares], 0.4, label="fitted", color="#0072B2")
    axes.set_yticks(rows, [f"{f.loss} at the {f.maps}" for f in shares])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("gradient, as a share of the student's own loss's (log scale)")
    axes.legend()
    return figure
