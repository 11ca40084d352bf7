"""A* on a grid, every event written down, in several forms; and the check of such a record by itself.

"create" notes a neighbour whose cost so far improves, "close" the cell that is expanded next; the start is closed
without having been created, and the record ends when the goal is closed. The checker's classes of errors are those of
arXiv:2505.13775, with wrong costs and neighbours left out set apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from mixdistill.traces.worlds.grids import DIRECTIONS, Cell, neighbours


class Maze(NamedTuple):
    """A question: a shortest way from start to goal, by moves up, right, down and left."""

    side: int
    start: Cell
    goal: Cell
    open: frozenset[Cell]


class Event(NamedTuple):
    """`cost` is the number of moves from the start, `estimate` the heuristic's to the goal."""

    kind: str  # "create" or "close"
    cell: Cell
    cost: int
    estimate: int


def manhattan(a: Cell, b: Cell) -> int:
    """The moves that free space would take."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def chebyshev(a: Cell, b: Cell) -> int:
    """The longer side alone."""
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


def nothing(a: Cell, b: Cell) -> int:
    """Dijkstra's search."""
    return 0


HEURISTICS = (manhattan, chebyshev, nothing)  # all consistent: a closed cell never improves


class Form(NamedTuple):
    """What A* leaves to choice. `ties`: which of the open cells with the lowest sum is closed first."""

    heuristic: Callable[[Cell, Cell], int] = manhattan
    order: tuple[Cell, ...] = DIRECTIONS
    ties: Literal["oldest", "newest"] = "oldest"


def search(maze: Maze, form: Form = Form()) -> tuple[list[Event], list[Cell]]:
    """The record, and the way from start to goal that it finds. The goal must be reachable."""
    events: list[Event] = []
    costs, parents, waiting, closed = {maze.start: 0}, {}, [maze.start], set()
    while not events or events[-1].cell != maze.goal or events[-1].kind != "close":
        cell = _next(waiting, costs, maze, form)
        waiting.remove(cell)
        closed.add(cell)
        events.append(Event("close", cell, costs[cell], form.heuristic(cell, maze.goal)))
        for other in _improving(maze, cell, costs, form.order) if cell != maze.goal else ():
            waiting += [] if other in costs else [other]  # an improved cell keeps its place
            costs[other], parents[other] = costs[cell] + 1, cell
            events.append(Event("create", other, costs[other], form.heuristic(other, maze.goal)))
    way = [maze.goal]
    while way[-1] != maze.start:
        way.append(parents[way[-1]])
    return events, way[::-1]


def _next(waiting: list[Cell], costs: dict[Cell, int], maze: Maze, form: Form) -> Cell:
    order = waiting if form.ties == "oldest" else waiting[::-1]
    return min(order, key=lambda cell: costs[cell] + form.heuristic(cell, maze.goal))


def _improving(maze: Maze, cell: Cell, costs: dict[Cell, int], order: tuple[Cell, ...] = DIRECTIONS) -> Iterator[Cell]:
    for other in neighbours(cell, maze.side, order):
        if other in maze.open and costs[cell] + 1 < costs.get(other, maze.side**2):
            yield other


ERRORS = ("neighbour", "cost", "omitted", "reclosed", "unopened", "order", "goal")


def check(maze: Maze, events: Sequence[Event]) -> str:
    """Empty for the record of an A* search in any form, else the first error: a created cell that is no improving
    neighbour of the cell just closed; a wrong cost or estimate; improving neighbours that were not created; a cell
    closed twice, or before it was created, or while another had a lower sum; an end that does not close the goal."""
    heuristics = HEURISTICS
    costs = {maze.start: 0}
    waiting = {maze.start: 0}  # cell -> cost + estimate
    due: dict[Cell, int] = {}  # neighbours of the cell just closed -> the cost that they are to be created with
    for event in events:
        heuristics = [fn for fn in heuristics if fn(event.cell, maze.goal) == event.estimate]
        error = _misplaced(event, due, costs, waiting)
        if error:
            return error
        if not heuristics or event.cost != (due if event.kind == "create" else costs)[event.cell]:
            return "cost"
        if event.kind == "create":
            costs[event.cell], waiting[event.cell] = due.pop(event.cell), event.cost + event.estimate
        else:
            del waiting[event.cell]
            due = {cell: event.cost + 1 for cell in _improving(maze, event.cell, costs)}
    return "" if events and (events[-1].kind, events[-1].cell) == ("close", maze.goal) else "goal"


def _misplaced(event: Event, due: dict[Cell, int], costs: dict[Cell, int], waiting: dict[Cell, int]) -> str:
    if event.kind == "create":
        return "" if event.cell in due else "neighbour"
    if due:
        return "omitted"
    if event.cell not in waiting:
        return "reclosed" if event.cell in costs else "unopened"
    return "order" if waiting[event.cell] > min(waiting.values()) else ""
