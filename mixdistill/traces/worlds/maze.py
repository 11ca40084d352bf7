"""MAZE: a shortest way through a grid, with the record of an A* search before it (the task of arXiv:2505.13775).

Prompt "query size N start X Y goal X Y wall X Y .. :", walls row by row. Completion "reasoning", then the events
"create X Y cG cH" and "close X Y cG cH", then "solution" and the way, "plan X Y" from start to goal. Answer and record
are judged apart: a right plan after a foreign record is correct and not valid.
"""

import functools
import itertools
import random
import re
from collections.abc import Callable, Sequence

from mixdistill.errors import UserError, unknown
from mixdistill.traces.worlds import astar
from mixdistill.traces.worlds.astar import Event, Form, Maze
from mixdistill.traces.worlds.grids import DIRECTIONS, FAMILIES, Cell, distances
from mixdistill.traces.worlds.world import Judgement, Split, Teacher, World

SMALLEST = 3
EVENT = re.compile(r"(create|close) ([0-9]+) ([0-9]+) c([0-9]+) c([0-9]+)")
PLAN = re.compile(r"plan [0-9]+ [0-9]+(?: plan [0-9]+ [0-9]+)*")
PROMPT = re.compile(r"query size [0-9]+ start [0-9]+ [0-9]+ goal [0-9]+ [0-9]+(?: wall [0-9]+ [0-9]+)* :")
COMPLETION = re.compile(rf"reasoning((?: {EVENT.pattern})+) solution {PLAN.pattern}")
NUMBER = re.compile(r"[0-9]+")
ERRORS = ("malformed", *astar.ERRORS, "plan", "detour")


def maze(family: str = "wilson", sizes: Sequence[int] = (5, 7), larger: Sequence[int] = (9,)) -> World:
    """Trained on mazes of `family` with these sides. Out of distribution: a split of every other family, and "larger"
    ones. Raises `UserError` for an unknown family and for sides below 3."""
    if family not in FAMILIES:
        raise unknown("maze family", family, FAMILIES)
    for size in (*sizes, *larger):
        if size < SMALLEST:
            raise UserError(f"size {size} of world maze: the side of a maze is at least {SMALLEST}")
    largest = max((*sizes, *larger))
    known = {part: Split(part, tuple(sizes), family) for part in ("train", "validation", "test")}
    others = {name: Split("test", tuple(sizes), name) for name in FAMILIES if name != family}
    return World(
        name="maze",
        words=_words(largest),
        splits={**known, **others, **({"larger": Split("test", tuple(larger), family)} if larger else {})},
        teachers=TEACHERS,
        errors=ERRORS,
        draw=functools.partial(draw, largest=largest),
        read=read,
        answer=lambda question: _plan(_reference(question)[1]),
        measure=lambda question: sum(event.kind == "close" for event in _reference(question)[0]),
        judge_question=judge,
        extract=extract,
    )


def _words(largest: int) -> tuple[str, ...]:
    marks = ("query", "size", "start", "goal", "wall", ":", "reasoning", "create", "close", "solution", "plan")
    return (*marks, *map(str, range(largest + 1)), *(f"c{cost}" for cost in range(largest**2)))


def draw(rng: random.Random, split: Split, size: int, *, largest: int) -> str:
    """Start and goal are any two open cells; of the searchformer family they are at least `size` moves apart."""
    if not SMALLEST <= size <= largest:
        raise UserError(f"size {size} of world maze: its words reach from {SMALLEST} to {largest}; maze() has `larger`")
    least = size if split.family == "searchformer" else 1
    while True:
        grid = FAMILIES[split.family](rng, size)
        start = rng.choice(sorted(grid))
        goals = sorted(cell for cell, moves in distances(grid, size, start).items() if moves >= least)
        if goals:
            return _prompt(size, start, rng.choice(goals), grid)


def _prompt(side: int, start: Cell, goal: Cell, grid: set[Cell]) -> str:
    walls = (f"wall {x} {y}" for y in range(side) for x in range(side) if (x, y) not in grid)
    return " ".join([f"query size {side} start {_at(start)} goal {_at(goal)}", *walls, ": "])


def read(prompt: str) -> Maze:
    """The maze. Raises `UserError` where there is none, or no way through it."""
    match = PROMPT.fullmatch(" ".join(prompt.split()))
    if not match:
        raise _no_problem(prompt)
    side, *places = map(int, NUMBER.findall(prompt))
    start, goal, *walls = _pairs(places)
    grid = frozenset((x, y) for y in range(side) for x in range(side)) - frozenset(walls)
    if start == goal or start not in grid or goal not in distances(grid, side, start):
        raise _no_problem(prompt)
    return Maze(side, start, goal, grid)


def _no_problem(prompt: str) -> UserError:
    form = "'query size N start X Y goal X Y wall X Y .. :' with a way from start to goal"
    return UserError(f"not a problem of world maze: {prompt[:80]!r}; it is {form}")


def judge(maze: Maze, completion: str) -> Judgement:
    """Correct is any shortest way. Valid is the record of A* in any form, by itself. The errors: words that form no
    record; those of `astar.check`; then a way through walls or to another place; a way that is too long."""
    plan = plan_error(maze, completion)
    match = COMPLETION.fullmatch(" ".join(completion.split()))
    trace = astar.check(maze, [_event(*found) for found in EVENT.findall(match[1])]) if match else "malformed"
    return Judgement(not plan, not trace, trace or plan)


def plan_error(maze: Maze, completion: str) -> str:
    """Empty for a shortest way, "plan" for no way through this maze, "detour" for a way that is not a shortest one."""
    plan = extract(completion)
    if not PLAN.fullmatch(plan):
        return "plan"
    way = _pairs([*map(int, NUMBER.findall(plan))])
    moves = all(astar.manhattan(a, b) == 1 for a, b in itertools.pairwise(way))
    if not moves or not maze.open.issuperset(way) or (way[0], way[-1]) != (maze.start, maze.goal):
        return "plan"
    return "detour" if len(way) > len(_reference(maze)[1]) else ""


def extract(completion: str) -> str:
    """The plan."""
    words = completion.split()
    return " ".join(words[len(words) - words[::-1].index("solution") :]) if "solution" in words else ""


def _pairs(numbers: Sequence[int]) -> list[Cell]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _event(kind: str, x: str, y: str, cost: str, estimate: str) -> Event:
    return Event(kind, (int(x), int(y)), int(cost), int(estimate))


def _at(cell: Cell) -> str:
    return f"{cell[0]} {cell[1]}"


def _plan(way: Sequence[Cell]) -> str:
    return " ".join(f"plan {_at(cell)}" for cell in way)


@functools.lru_cache(maxsize=256)
def _reference(maze: Maze) -> tuple[list[Event], list[Cell]]:
    return astar.search(maze)


def _steps(events: Sequence[Event], way: Sequence[Cell]) -> list[str]:
    """A step is one cell closed, with the cells that it creates; the last one is the way."""
    steps: list[str] = []
    for event in events:
        text = f"{event.kind} {_at(event.cell)} c{event.cost} c{event.estimate}"
        if event.kind == "close":
            steps.append(text)
        else:
            steps[-1] += f" {text}"
    return [f"reasoning {steps[0]}", *steps[1:], f"solution {_plan(way)}"]


def _searcher(form: Form) -> Callable[[Maze, random.Random], list[str]]:
    return lambda maze, rng: _steps(*astar.search(maze, form))


def _irrelevant(maze: Maze, rng: random.Random) -> list[str]:
    other = read(draw(rng, Split("train", (), "wilson"), maze.side, largest=maze.side))
    return _steps(_reference(other)[0], _reference(maze)[1])


TEACHERS = {
    "A": Teacher(_searcher(Form()), "A*: Manhattan distance; up, right, down, left; the oldest of equals"),
    "R": Teacher(_searcher(Form(order=DIRECTIONS[::-1])), "looks left, down, right, up"),
    "N": Teacher(_searcher(Form(ties="newest")), "closes the newest of equals"),
    "E": Teacher(_searcher(Form(astar.chebyshev)), "estimates by the longer side alone"),
    "D": Teacher(_searcher(Form(astar.nothing)), "Dijkstra: no estimate"),
    "C": Teacher(_irrelevant, "the record of another maze, then a shortest way", sound=False),
}
