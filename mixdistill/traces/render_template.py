"""Renders one chat template in a process of its own: JSON on stdin, JSON on stdout.

A chat template is a program out of a downloaded file. jinja2's immutable sandbox keeps it from Python's objects, and
the limits below from time and memory; no check inside one process could stop `{{ "a" * 10**10 }}`.
"""

import contextlib
import json
import resource
import sys

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 5
MEMORY_BYTES = 2**30
OUTPUT_CHARACTERS = 2**18  # the longest templates in use, with their tool instructions, write under 2**14


def _refuse(message: str) -> None:
    raise TemplateError(message)


def render(source: str, values: dict) -> str:
    """The template's text. The environment has what chat templates expect; no clock, so that it is a pure function."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    text = environment.from_string(source).render(values)
    if len(text) > OUTPUT_CHARACTERS:
        raise TemplateError(f"it writes {len(text)} characters; at most {OUTPUT_CHARACTERS} are allowed")
    return text


def _limit() -> None:
    for kind, limit in ((resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES)):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
            resource.setrlimit(kind, (limit, limit))


def main() -> None:
    """Answers {"text": ...} or {"error": ...}."""
    request = json.load(sys.stdin)
    _limit()
    try:
        answer = {"text": render(request["source"], request["values"])}
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except Exception as error:  # noqa: BLE001 - a template may raise whatever its expressions raise
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
