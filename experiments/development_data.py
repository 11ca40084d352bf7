"""Where the recorded traces of real teachers lie: `MIXDISTILL_DATA`, or `shared/data` beside the checkout."""

import os
from pathlib import Path

from mixdistill.errors import UserError


def development_data() -> Path:
    """The folder of recorded traces. `UserError` names the variable to set where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MIXDISTILL_DATA", default))
    if not (folder / "teachers.json").is_file():
        raise UserError(
            f"no recorded traces in {folder} (teachers.json is missing); set MIXDISTILL_DATA to their folder"
        )
    return folder
