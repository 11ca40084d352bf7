"""The process that does algebra for `grade_pool`: pairs in, verdicts out, a JSON line each.

Algebra on hostile input may never end or take all memory, also inside C code where no exception arrives. So the kernel
ends this process when a pair has used its seconds of CPU time, and refuses it more than `MEMORY_BYTES`."""

import contextlib
import json
import logging
import resource
import signal
import sys

MEMORY_BYTES = 4 * 2**30
# What sympy raises on expressions that it does not know; anything else ends the process, which the pool survives.
UNABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def main(seconds: float) -> None:
    """Answers until the other side closes. The first line says that this process is ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable()
    from mixdistill.traces.grade_algebra import equal

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF, unhandled, ends the process
        try:
            verdict = equal(*json.loads(line))
        except UNABLE:
            verdict = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
