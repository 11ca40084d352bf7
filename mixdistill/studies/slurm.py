"""A study on SLURM: an array with a task for each row, and a job after it that writes the table."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mixdistill.errors import UserError
from mixdistill.studies.sweep import Key, Sweep


def submit(what: Sweep, todo: Sequence[Key], tiny: bool) -> int:
    """Hands both jobs in; their script and logs go to RUNS. 0, or sbatch's complaint. Raises `UserError` without SLURM.

    Every host has to see RUNS and RESULTS under the same path. A row that another one needs is made by both tasks if
    they run at once; both make the same.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not installed here; run this where jobs are submitted, or use --on local")
    what.runs.mkdir(parents=True, exist_ok=True)
    rows, table = what.runs / "rows.sbatch", what.runs / "table.sbatch"
    rows.write_text(array(what, todo, tiny), encoding="utf-8")
    table.write_text(_script(what, [command(what, tiny)], "table"), encoding="utf-8")
    after: list[str] = []
    if todo:
        done = _sbatch([str(rows)])
        if done.returncode:
            return 1
        after = [f"--dependency=afterany:{done.stdout.strip().partition(';')[0]}"]
    return 1 if _sbatch([*after, str(table)]).returncode else 0


def array(what: Sweep, todo: Sequence[Key], tiny: bool) -> str:
    """The script of the array; a task that is preempted is put back into the queue and begins its row again."""
    each = [command(what, tiny, "--arms", arm, "--seeds", str(seed), "--rows-only") for arm, seed in todo]
    lines = ["case $SLURM_ARRAY_TASK_ID in", *(f"{n}) {words} ;;" for n, words in enumerate(each)), "esac"]
    return _script(what, lines, "rows", f"#SBATCH --array=0-{len(todo) - 1}")


def command(what: Sweep, tiny: bool, *more: str) -> str:
    """Quoted for a shell."""
    places = ["--runs", str(what.runs.absolute()), "--out", str(what.results.absolute())]
    words = [sys.executable, "-m", "mixdistill.cli", "sweep", what.name, *places, "--jobs", "1", *more]
    return shlex.join([*words, *["--tiny"] * tiny])


def _script(what: Sweep, lines: Sequence[str], name: str, *options: str) -> str:
    log = what.runs.absolute() / f"{name}-%A-%a.log"
    head = [
        "#!/bin/bash",
        f"#SBATCH --job-name={what.study.name}-{name}",
        "#SBATCH --ntasks=1",
        f"#SBATCH --output={log}",
    ]
    head += ["#SBATCH --requeue", f"#SBATCH --chdir={Path.cwd()}", *options]
    return "\n".join([*head, *lines, ""])


def _sbatch(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True, check=False)
    print(done.stdout.strip() or done.stderr.strip(), file=sys.stderr)
    return done
