"""The picture of the quickstart: accuracy over train steps, what the mixture was, and which teachers conflict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"best_single": "#4477aa", "pooled": "#cc6677", "mixdistill": "#117733"}
TEACHER_COLOURS = ("#4477aa", "#ee8866", "#aa3377", "#bbbbbb", "#228833", "#ccbb44", "#66ccee", "#000000")


def draw(path: Path, arms: Sequence[Any]) -> None:
    """Three panels from the first seed of every arm (`quickstart.Arm`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.2), width_ratios=(1.15, 1.15, 1))
    mixed = next(arm for arm in arms if arm.name == "mixdistill")
    _accuracy(left, arms)
    _mixture(middle, mixed.results[0])
    _conflict(right, mixed.results[0].admission)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _accuracy(axes: Any, arms: Sequence[Any]) -> None:
    for arm in arms:
        first, name = arm.results[0], arm.name.replace("_", " ")
        label = f"{name} ({first.arm})" if arm.name == "best_single" else name
        steps, values = zip(*first.curve, strict=True)
        axes.plot(steps, values, marker=".", color=COLOURS[arm.name], label=f"{label}: {arm.row['accuracy']:.2f}")
    axes.set(title="accuracy on validation problems", xlabel="train step", xlim=(0, None), ylim=(-0.03, 1.03))
    axes.legend(title="test, mean of the seeds", loc="upper left", framealpha=0.9)
    _plain(axes)


def _mixture(axes: Any, result: Any) -> None:
    steps = [step for step, _ in result.shares]
    names = sorted(result.shares[0][1])
    rows = np.array([[share[name] for name in names] for _, share in result.shares]).T
    present = [k for k in range(len(names)) if rows[k].any()]
    axes.stackplot(
        steps, rows[present], colors=[TEACHER_COLOURS[k % len(TEACHER_COLOURS)] for k in present], alpha=0.85
    )
    middle, below = len(steps) // 2, 0.0
    for k in present:
        share = rows[k, middle]
        axes.text(steps[middle], below + share / 2, f"{names[k]}  {share:.0%}", ha="center", va="center", size=13)
        below += share
    axes.set(title="share of the tokens, mixdistill", xlabel="train step", ylim=(0, 1))
    axes.margins(x=0)
    if result.admission.apart:
        apart = f"kept apart: {', '.join(result.admission.apart)}"
        axes.text(0.98, 0.97, apart, ha="right", va="top", transform=axes.transAxes)
    _plain(axes)


def _conflict(axes: Any, admission: Any) -> None:
    names, score = admission.conflict.teachers, admission.conflict.score
    axes.imshow(score, cmap="OrRd", vmin=0, vmax=max(0.25, float(np.nanmax(score))))
    for i, j in np.argwhere(~np.eye(len(names), dtype=bool)):
        inside = names[i] in admission.teachers and names[j] in admission.teachers
        colour, weight = "white" if score[i, j] > 0.15 else "black", "bold" if inside else "normal"
        axes.text(j, i, f"{score[i, j]:.2f}", ha="center", va="center", color=colour, weight=weight)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="conflict between teachers, bits", xlabel=f"kept apart above {admission.threshold:.2f}")
    axes.tick_params(length=0)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
