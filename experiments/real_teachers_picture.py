"""The picture of the study of real teachers: who conflicts, which measures agree, what students make of unseen text.

python -m experiments.real_teachers_picture [--results experiments/results/real_teachers] [--out docs/real_teachers.png]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.real_teachers import ANCHOR, FITS, MIXES, POOL, study
from mixdistill.studies import rows
from mixdistill.studies.publish import results_of
from mixdistill.studies.results import Results

TITLES = {"rank_surprisal_ratio": "RSR", "grape": "GRAPE", "local_naturalness": "LALP", "ifd": "IFD"}
STUDENTS = (*(name for name in POOL if name != ANCHOR), ANCHOR, *MIXES)
COLOURS = {"human": "#117733", "unseen": "#4477aa"}


def draw(path: Path, results: Results) -> None:
    """Three panels; numbers are means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 4.8), width_ratios=(1.1, 1.1, 1))
    conflict = _square(POOL, lambda a, b: results.mean(ANCHOR, f"conflict {a}-{b}"), 0.0)
    _map(left, conflict, POOL, "continuation conflict, bits", {"cmap": "OrRd", "vmin": 0, "vmax": 0.1})
    taus = _square(tuple(FITS), lambda a, b: results.mean("ranking", f"tau {a}~{b}"), 1.0)
    goal = [results.mean("ranking", f"tau {name} unseen") for name in FITS]
    whole = np.vstack([taus, goal])
    names = [TITLES.get(name, name) for name in FITS]
    title = "rank agreement of measures over six models (Kendall's tau)"
    _map(middle, whole, [*names, "what is\nlearned"], title, {"cmap": "PuOr", "vmin": -1, "vmax": 1}, columns=names)
    _students(right, results)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _square(names: Sequence[str], of: Any, diagonal: float) -> np.ndarray:
    found = np.full((len(names), len(names)), diagonal)
    for i, one in enumerate(names):
        for j, other in enumerate(names[i + 1 :], i + 1):
            found[i, j] = found[j, i] = of(one, other)
    return found


def _map(
    axes: Any,
    values: np.ndarray,
    names: Sequence[str],
    title: str,
    colours: dict[str, Any],
    columns: Sequence[str] | None = None,
) -> None:
    axes.imshow(values, **colours)
    for i, j in np.argwhere(~np.isnan(values)):
        dark = abs(values[i, j]) > 0.6 * colours["vmax"]
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black", size=9)
    axes.set_xticks(range(values.shape[1]), columns or names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title, fontsize=11)
    axes.tick_params(length=0)


def _students(axes: Any, results: Results) -> None:
    places = np.arange(len(STUDENTS))
    for shift, (goal, colour) in zip((-0.15, 0.15), COLOURS.items(), strict=True):
        for place, arm in zip(places + shift, STUDENTS, strict=True):
            found = results.interval(arm, goal)
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.5)
            axes.plot([found.mean], [place], "o", color=colour, label=goal if place < 0.5 else None)
    axes.set_yticks(places, STUDENTS)
    axes.invert_yaxis()
    axes.set(title="held-out NLL of each student, nats a token", xlabel="of people's and of unseen teachers' solutions")
    axes.legend(framealpha=0.9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real_teachers_picture")
    parser.add_argument("--results", type=Path, default=Path("experiments/results/real_teachers"))
    parser.add_argument("--out", type=Path, default=Path("docs/real_teachers.png"))
    given = parser.parse_args(arguments)
    draw(given.out, results_of(study(), rows.read_all(given.results / rows.ALL)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
