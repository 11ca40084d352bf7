"""Work that waits for others, in threads that can be left: an exception in the caller (a signal's, say) is not held up
by answers that may never come, and neither is the end of the process."""

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any


def in_threads[Item, Result](work: Callable[[Item], Result], items: Sequence[Item], count: int) -> list[Result]:
    """`[work(item) for item in items]`, `count` at a time. Raises what the first `work` to fail raised."""
    waiting: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    found: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for pair in enumerate(items):
        waiting.put(pair)

    def run() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                index, item = waiting.get_nowait()
                try:
                    found.put((index, work(item), None))
                except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
                    found.put((index, None, error))

    for _ in range(min(count, len(items))):
        threading.Thread(target=run, daemon=True).start()
    results: dict[int, Result] = {}
    try:
        for _ in items:
            index, result, error = found.get()
            if error is not None:
                raise error
            results[index] = result
    finally:
        with contextlib.suppress(queue.Empty):  # threads that are left behind begin nothing new
            while True:
                waiting.get_nowait()
    return [results[index] for index in range(len(items))]
