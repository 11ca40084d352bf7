#!/usr/bin/env bash
# Creates .venv with exactly what requirements.lock pins (hashes checked) and this project in editable form.
# Uses uv where it works, else venv and pip of any Python 3.12 or 3.13. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

with_uv() {
    # A pyenv shim answers `command -v uv` even where no uv stands behind it, so run it.
    uv --version >/dev/null 2>&1 || return 1
    [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 --no-python-downloads .venv || return 1
    uv pip sync --quiet --require-hashes --python .venv/bin/python requirements.lock
    uv pip install --quiet --no-deps --python .venv/bin/python --editable .
}

find_python() {
    local name
    for name in python3.12 python3.13 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    echo "mixdistill needs Python 3.12 or 3.13 on the PATH (or uv); found: $(python3 --version 2>&1)" >&2
    return 1
}

with_pip() {
    local python
    python=$(find_python)
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
}

echo "Installing into .venv (once; about 10 seconds with uv, 90 with pip)"
with_uv || with_pip
touch .venv/.installed
