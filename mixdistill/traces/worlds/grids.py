"""Grids with walls: the generators of the maze families. A grid is the set of its open cells.

The perfect mazes have their rooms at even coordinates, with a wall or an opening between two of them; where the side is
even the last row and column are wall.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterator

Cell = tuple[int, int]  # x, y: x grows to the right, y downwards
Grid = set[Cell]

UP, RIGHT, DOWN, LEFT = (0, -1), (1, 0), (0, 1), (-1, 0)
DIRECTIONS = (UP, RIGHT, DOWN, LEFT)


def neighbours(cell: Cell, side: int, order: tuple[Cell, ...] = DIRECTIONS, stride: int = 1) -> Iterator[Cell]:
    """The cells beside `cell` that lie in the grid."""
    for dx, dy in order:
        x, y = cell[0] + stride * dx, cell[1] + stride * dy
        if 0 <= x < side and 0 <= y < side:
            yield x, y


def wilson(rng: random.Random, side: int) -> Grid:
    """Loop-erased random walks: every spanning tree of the rooms is equally likely."""
    rooms = _rooms(side)
    first, *others = rng.sample(rooms, len(rooms))
    grid = {first}
    for start in others:
        step: dict[Cell, Cell] = {}
        room = start
        while room not in grid:  # a later step from the same room replaces an earlier one: that erases the loop
            step[room] = rng.choice(list(neighbours(room, _even(side), stride=2)))
            room = step[room]
        room = start
        while room not in grid:
            grid |= {room, _between(room, step[room])}
            room = step[room]
    return grid


def kruskal(rng: random.Random, side: int) -> Grid:
    """Opens walls in random order, wherever two parts are not joined yet."""
    rooms = _rooms(side)
    part = {room: {room} for room in rooms}
    walls = [(room, other) for room in rooms for other in neighbours(room, _even(side), (RIGHT, DOWN), 2)]
    rng.shuffle(walls)
    grid = set(rooms)
    for room, other in walls:
        if part[room] is not part[other]:
            grid.add(_between(room, other))
            part[room] |= part[other]
            part |= dict.fromkeys(part[other], part[room])
    return grid


def backtracker(rng: random.Random, side: int) -> Grid:
    """A walk to random new rooms, which goes back where there is none: long corridors."""
    trail = [rng.choice(_rooms(side))]
    grid = set(trail)
    while trail:
        new = [room for room in neighbours(trail[-1], _even(side), stride=2) if room not in grid]
        if not new:
            trail.pop()
            continue
        room = rng.choice(new)
        grid |= {room, _between(trail[-1], room)}
        trail.append(room)
    return grid


def drunkard(rng: random.Random, side: int, coverage: float = 0.5) -> Grid:
    """A random walk opens cells until this share of all is open."""
    cell = rng.randrange(side), rng.randrange(side)
    grid = {cell}
    while len(grid) < coverage * side**2:
        cell = rng.choice(list(neighbours(cell, side)))
        grid.add(cell)
    return grid


def searchformer(rng: random.Random, side: int) -> Grid:
    """30 to 50 % of all cells, at random, are wall."""
    cells = [(x, y) for y in range(side) for x in range(side)]
    return set(cells) - set(rng.sample(cells, round(rng.uniform(0.3, 0.5) * side**2)))


def free(rng: random.Random, side: int) -> Grid:
    """No walls."""
    return {(x, y) for y in range(side) for x in range(side)}


FAMILIES: dict[str, Callable[[random.Random, int], Grid]] = {
    make.__name__: make for make in (wilson, kruskal, backtracker, drunkard, searchformer, free)
}


def distances(grid: Collection[Cell], side: int, start: Cell) -> dict[Cell, int]:
    """Moves from `start` to every open cell that can be reached."""
    reached = {start: 0}
    waiting = deque([start])
    while waiting:
        cell = waiting.popleft()
        for other in neighbours(cell, side):
            if other in grid and other not in reached:
                reached[other] = reached[cell] + 1
                waiting.append(other)
    return reached


def _rooms(side: int) -> list[Cell]:
    return [(x, y) for y in range(0, side, 2) for x in range(0, side, 2) if max(x, y) < _even(side)]


def _even(side: int) -> int:
    """The side without a last row that would be between rooms and the border."""
    return side - 1 + side % 2


def _between(a: Cell, b: Cell) -> Cell:
    return (a[0] + b[0]) // 2, (a[1] + b[1]) // 2
