"""MAZE: the families, A* against a plain reference, the exact form of its record, every class of error."""

import random

import pytest

from mixdistill.errors import UserError
from mixdistill.traces.worlds import astar, grids
from mixdistill.traces.worlds.astar import Form, Maze
from mixdistill.traces.worlds.maze import ERRORS, TEACHERS, maze, plan_error

WORLD = maze()
PERFECT = ("wilson", "kruskal", "backtracker")


@pytest.mark.parametrize("side", [3, 4, 7, 8])
@pytest.mark.parametrize("family", PERFECT)
def test_perfect_mazes_join_all_rooms_in_exactly_one_way(family, side):
    for seed in range(5):
        grid = grids.FAMILIES[family](random.Random(seed), side)
        across = (side + 1) // 2
        assert len(grid) == 2 * across**2 - 1  # the rooms, and one opening less
        assert {(x, y) for x in range(0, 2 * across - 1, 2) for y in range(0, 2 * across - 1, 2)} <= grid
        assert grids.distances(grid, side, (0, 0)).keys() == grid


@pytest.mark.parametrize("family", PERFECT)
def test_families_differ_in_their_corridors(family):
    """Dead ends a maze of 6 x 6 rooms: the backtracker has few, the others some 30 % of the rooms."""
    ends = 0
    for seed in range(40):
        grid = grids.FAMILIES[family](random.Random(seed), 11)
        ends += sum(sum(other in grid for other in grids.neighbours(cell, 11)) == 1 for cell in grid)
    assert ends / 40 / 36 < 0.2 if family == "backtracker" else ends / 40 / 36 > 0.25


def test_wilson_is_uniform_over_spanning_trees():
    """Four rooms in a ring have four trees."""
    seen = [frozenset(grids.wilson(random.Random(seed), 3)) for seed in range(400)]
    counts = [seen.count(tree) for tree in set(seen)]
    assert len(counts) == 4
    assert min(counts) > 70


def test_the_drunkard_opens_half_and_stays_in_one_piece():
    for seed in range(10):
        grid = grids.drunkard(random.Random(seed), 7)
        assert len(grid) == 25
        assert grids.distances(grid, 7, min(grid)).keys() == grid


def test_searchformer_mazes_have_a_third_to_a_half_walls_and_long_ways():
    for problem in WORLD.problems(0, "searchformer", 30):
        question = WORLD.read(problem.prompt)
        assert 0.5 <= len(question.open) / question.side**2 <= 0.7 + 0.5 / question.side**2
        assert len(problem.answer.split("plan")) - 2 >= question.side


@pytest.mark.parametrize("teacher", [name for name, teacher in TEACHERS.items() if teacher.sound])
@pytest.mark.parametrize("family", grids.FAMILIES)
def test_every_form_finds_a_shortest_way(family, teacher):
    for problem in maze(family).problems(1, "train", 5):
        question = WORLD.read(problem.prompt)
        plan = WORLD.trace(problem, teacher).answer
        moves = grids.distances(question.open, question.side, question.start)[question.goal]
        assert plan.count("plan") == moves + 1
        assert plan_error(question, "solution " + plan) == ""


def reference(question: Maze) -> list[tuple]:
    """A* as the paper writes it, over a list of open nodes."""
    events, nodes, done, best = [], [(0, question.start)], [], {question.start: 0}
    while True:
        sums = [best[cell] + astar.manhattan(cell, question.goal) for _, cell in nodes]
        _, cell = nodes.pop(sums.index(min(sums)))
        done.append(cell)
        events.append(("close", cell, best[cell], astar.manhattan(cell, question.goal)))
        if cell == question.goal:
            return events
        for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0)):
            other = cell[0] + dx, cell[1] + dy
            if other not in question.open or best.get(other, 10**6) <= best[cell] + 1:
                continue
            best[other] = best[cell] + 1
            if other not in [waiting for _, waiting in nodes]:
                nodes.append((best[other], other))
            events.append(("create", other, best[other], astar.manhattan(other, question.goal)))


@pytest.mark.parametrize("family", grids.FAMILIES)
def test_the_record_is_that_of_the_plain_search(family):
    for problem in maze(family).problems(2, "train", 10):
        question = WORLD.read(problem.prompt)
        assert [tuple(event) for event in astar.search(question)[0]] == reference(question)


CORNER = WORLD.problem_of("query size 3 start 0 0 goal 2 0 wall 1 0 wall 1 2 wall 2 2 :")
RECORD = (
    "reasoning close 0 0 c0 c2 create 0 1 c1 c3 close 0 1 c1 c3 create 1 1 c2 c2 create 0 2 c2 c4 close 1 1 c2 c2"
    " create 2 1 c3 c1 close 2 1 c3 c1 create 2 0 c4 c0 close 2 0 c4 c0"
)
PLAN = " solution plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0"


def test_the_form_of_a_record():
    trace = WORLD.trace(CORNER, "A")
    assert trace.text == RECORD + PLAN
    assert [step.text for step in trace.steps[:2]] == [
        "reasoning close 0 0 c0 c2 create 0 1 c1 c3 ",
        "close 0 1 c1 c3 create 1 1 c2 c2 create 0 2 c2 c4 ",
    ]
    assert CORNER.difficulty == 5  # cells closed


CHANGES = [
    ("closed twice", "close 0 1 c1 c3 create", "close 0 0 c0 c2 create", "reclosed"),
    ("closed again", "close 2 1 c3 c1", "close 1 1 c2 c2", "reclosed"),
    ("closed before it was created", "close 1 1 c2 c2", "close 2 1 c3 c1", "unopened"),
    ("closed while another was cheaper", "close 1 1 c2 c2 create", "close 0 2 c2 c4 close 1 1 c2 c2 create", "order"),
    ("created far away", "create 2 1 c3 c1", "create 2 0 c4 c0", "neighbour"),
    ("created in a wall", "create 0 1 c1 c3 close", "create 1 0 c1 c1 create 0 1 c1 c3 close", "neighbour"),
    ("created twice", "create 2 1 c3 c1", "create 2 1 c3 c1 create 2 1 c3 c1", "neighbour"),
    ("not created", " create 0 2 c2 c4", "", "omitted"),
    ("a wrong cost", "create 2 1 c3 c1", "create 2 1 c4 c1", "cost"),
    ("a wrong cost when closed", "close 2 1 c3 c1", "close 2 1 c2 c1", "cost"),
    ("a wrong estimate", "create 0 1 c1 c3", "create 0 1 c1 c1", "cost"),
    ("estimates of two forms", "close 0 1 c1 c3", "close 0 1 c1 c2", "cost"),
    ("the goal is not closed", " close 2 0 c4 c0", "", "goal"),
    ("goes on", "close 2 0 c4 c0", "close 2 0 c4 c0 close 0 2 c2 c4", "goal"),
    ("half an event", " c3 c1 close", " c3 close", "malformed"),
    ("no event", RECORD, "reasoning", "malformed"),
    ("an unknown word", "create 0 2", "wall 0 2", "malformed"),
]


@pytest.mark.parametrize(("what", "old", "new", "error"), CHANGES, ids=[row[0] for row in CHANGES])
def test_errors_of_the_record(what, old, new, error):
    assert old in RECORD
    assert WORLD.judge(CORNER, RECORD.replace(old, new, 1) + PLAN) == (True, False, error)


PLANS = [
    ("a step through the wall", " solution plan 0 0 plan 1 0 plan 2 0", "plan"),
    ("a jump", " solution plan 0 0 plan 2 0", "plan"),
    ("diagonal", " solution plan 0 0 plan 1 1 plan 2 1 plan 2 0", "plan"),
    ("too short", " solution plan 0 0 plan 0 1 plan 1 1 plan 2 1", "plan"),
    ("without the start", " solution plan 0 1 plan 1 1 plan 2 1 plan 2 0", "plan"),
    ("twice", " solution plan 0 0 plan 0 1 plan 0 0 plan 0 1 plan 1 1 plan 2 1 plan 2 0", "detour"),
]


@pytest.mark.parametrize(("what", "plan", "error"), PLANS, ids=[row[0] for row in PLANS])
def test_errors_of_the_plan(what, plan, error):
    assert WORLD.judge(CORNER, RECORD + plan) == (False, True, error)
    assert plan_error(WORLD.read(CORNER.prompt), plan) == error


def test_a_foreign_record_with_the_right_plan_is_correct_and_not_valid():
    for problem in WORLD.problems(0, "train", 10):
        judgement = WORLD.judge(problem, WORLD.trace(problem, "C").text)
        assert judgement.correct
        assert not judgement.valid
        assert judgement.error in ERRORS


@pytest.mark.parametrize("teacher", "ARNED")
def test_any_other_word_and_any_missing_step_of_the_way_is_seen(teacher):
    rng = random.Random(0)
    for problem in WORLD.problems(7, "searchformer", 1):
        trace = WORLD.trace(problem, teacher)
        words = trace.text.split()
        for place in range(words.index("solution")):
            for other in rng.sample(sorted(set(WORLD.words) - {words[place]}), 6):
                changed = " ".join([*words[:place], other, *words[place + 1 :]])
                assert not WORLD.judge(problem, changed).valid, changed
        way = [cell.split() for cell in trace.answer.split("plan ")[1:]]
        for missing in range(len(trace.steps) - 1):
            if trace.steps[missing].text.removeprefix("reasoning ").split()[1:3] not in way:
                continue  # of cells with equal sums that lie off the way, A* may close any number
            rest = "".join(step.text for i, step in enumerate(trace.steps) if i != missing)
            assert not WORLD.judge(problem, rest).valid, rest


@pytest.mark.parametrize("first", range(4))
def test_steps_in_another_order_are_seen(first):
    *steps, plan = (step.text for step in WORLD.trace(CORNER, "A").steps)
    steps[first], steps[first + 1] = steps[first + 1], steps[first]
    assert WORLD.judge(CORNER, "".join([*steps, plan])).error in ("malformed", "unopened")


def test_forms_differ():
    problem = WORLD.problem(0, "free", 1)
    assert len({WORLD.trace(problem, teacher).text for teacher in "ARNED"}) == 5
    question = WORLD.read(problem.prompt)
    closed = {name: sum(e.kind == "close" for e in astar.search(question, form)[0]) for name, form in FORMS.items()}
    assert closed["manhattan"] <= closed["nothing"]


FORMS = {fn.__name__: Form(fn) for fn in astar.HEURISTICS}


def test_splits_name_family_and_size():
    other = maze("kruskal", sizes=(5,), larger=())
    assert set(other.splits) == {"train", "validation", "test", *grids.FAMILIES} - {"kruskal"}
    assert other.splits["train"].family == "kruskal"
    assert WORLD.read(WORLD.problem(0, "larger", 0).prompt).side == 9


def test_bad_families_and_sizes():
    with pytest.raises(UserError, match="did you mean 'wilson'"):
        maze("wilsen")
    with pytest.raises(UserError, match="side of a maze"):
        maze(sizes=(2,))
    with pytest.raises(UserError, match="size 11 of world maze"):
        WORLD.problem(0, "train", 0, sizes=[11])


@pytest.mark.parametrize(
    "prompt",
    [
        "query size 3 start 0 0 goal 2 0 wall 1 0 wall 1 1 wall 1 2 :",  # no way
        "query size 3 start 0 0 goal 0 0 :",
        "query size 3 start 0 0 goal 0 3 :",
        "query size 3 start 0 0 goal 2 2 wall 0 0 :",
        "query size 3 start 0 0 goal 2 2 wall 1 :",
        "query size 3 start 0 0 goal 2 2",
    ],
)
def test_prompts_of_no_problem(prompt):
    with pytest.raises(UserError, match="world maze"):
        WORLD.problem_of(prompt)
