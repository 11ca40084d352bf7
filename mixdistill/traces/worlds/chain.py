"""CHAIN: the product of n elements of the dihedral group D5, written 0..9; chance is 1 in 10.

The group is associative, so every order of reduction is right and gives the same answer; it is not commutative, so
after the same local text "state operand" one order writes state * operand and another operand * state. Flawless
teachers thus clash where their texts look alike.

Prompt "? x1 .. xn :", completion "trace = answer". A trace is the first operand, then pairs "operand state".
"""

import itertools
import random
from collections.abc import Callable, Sequence

from mixdistill.errors import UserError
from mixdistill.traces.worlds.world import Judgement, Split, Teacher, World, after_last, joined

ORDER = 10
DIGITS = tuple(map(str, range(ORDER)))
LETTERS = tuple("abcdefghij")  # the second notation
SIZES = (3, 4, 5)
ERRORS = ("malformed", "notation", "order", "side", "arithmetic", "answer")

Operands = tuple[int, ...]
Reduction = list[tuple[int, int, int]]  # (operand that is written, first, last operand of the product so far)


def multiply(a: int, b: int) -> int:
    """Rotations are 0..4, reflections 5..9."""
    turn = (a - b if a >= 5 else a + b) % 5
    return turn if (a < 5) == (b < 5) else 5 + turn


TABLE = [[multiply(a, b) for b in range(ORDER)] for a in range(ORDER)]


def product(operands: Sequence[int]) -> int:
    """From left to right; of at least one element."""
    value = operands[0]
    for operand in operands[1:]:
        value = TABLE[value][operand]
    return value


def forward(n: int) -> Reduction:
    """From the left."""
    return [(k, 0, k) for k in range(n)]


def backward(n: int) -> Reduction:
    """From the right."""
    return [(k, k, n - 1) for k in reversed(range(n))]


def middle_out(n: int) -> Reduction:
    """From the middle, to the right and to the left in turn."""
    low = high = n // 2
    steps, right = [(low, low, high)], True
    while high - low < n - 1:
        if (right and high < n - 1) or low == 0:
            high += 1
            steps.append((high, low, high))
        else:
            low -= 1
            steps.append((low, low, high))
        right = not right
    return steps


def skipping(n: int) -> Reduction:
    """From the left, two multiplications for each that is written."""
    return [(k, 0, k) for k in (0, *range(2, n - 1, 2), n - 1)]


REDUCTIONS = (forward, backward, middle_out, skipping)


def read(prompt: str) -> Operands:
    """The operands."""
    words = prompt.split()
    if len(words) < 4 or words[0] != "?" or words[-1] != ":" or not set(words[1:-1]) <= set(DIGITS):
        raise UserError(f"not a problem of world chain: {prompt[:80]!r}; it is '? x1 .. xn :' with digits x")
    return tuple(map(int, words[1:-1]))


def draw(rng: random.Random, split: Split, size: int) -> str:
    """`size` operands."""
    if size < 2:
        raise UserError(f"size {size} of world chain: a product needs at least 2 operands")
    return joined("?", *(rng.choice(DIGITS) for _ in range(size)), ":") + " "


def judge(operands: Operands, completion: str) -> Judgement:
    """Valid is any reduction of neighbours with right states, in one notation, hedged or not; so is no trace at all.
    The errors: words that form no trace; both notations; operands in no teacher's order; a state from the other side;
    a state from neither side; nothing but the answer."""
    words = completion.split()
    correct = after_last(completion, "=") == str(product(operands))
    error = _error(operands, words) or ("" if correct else "answer")
    return Judgement(correct, error in ("", "answer"), error)


def _error(operands: Operands, words: list[str]) -> str:
    body = _body(words)
    if body is None:
        return "malformed"
    if not body:
        return ""
    in_letters = {word in LETTERS for word in body}
    if len(in_letters) == 2:
        return "notation"
    values = [(LETTERS if word in LETTERS else DIGITS).index(word) for word in body]
    shown, states = [values[0], *values[1::2]], [values[0], *values[2::2]]
    if _reduces(operands, shown, states):
        return ""
    matching = [order for order in (make(len(operands)) for make in REDUCTIONS) if _shows(operands, order) == shown]
    if not matching:
        return "order"
    if any(_written(operands, order) == states for order in matching):
        return ""
    steps = zip(itertools.pairwise(states), shown[1:], strict=True)
    either_side = (new in (TABLE[old][operand], TABLE[operand][old]) for (old, new), operand in steps)
    return "side" if all(either_side) else "arithmetic"


def _body(words: list[str]) -> list[str] | None:
    """The operands and states, without hedges; None when the words are no trace."""
    if words.count("=") != 1 or len(words) != words.index("=") + 2 or words[-1] not in DIGITS:
        return None
    body = [word for word in words[:-2] if word != "maybe"]
    if "check" in body:
        *body, check, claim = body if len(body) > 2 else ["", "", ""]
        if check != "check" or claim != body[-1]:
            return None
    known = all(word in DIGITS or word in LETTERS for word in body)
    return body if known and (len(body) % 2 or not body) else None


def _reduces(operands: Operands, shown: list[int], states: list[int]) -> bool:
    """Whether some growing range of neighbours explains every operand and state. Equal operands leave several."""
    ranges = {(i, i) for i, operand in enumerate(operands) if operand == shown[0]}
    for (old, new), operand in zip(itertools.pairwise(states), shown[1:], strict=True):
        right = {(a, b + 1) for a, b in ranges if operands[b + 1 : b + 2] == (operand,) and new == TABLE[old][operand]}
        left = {(a - 1, b) for a, b in ranges if a and operands[a - 1] == operand and new == TABLE[operand][old]}
        ranges = right | left
    return (0, len(operands) - 1) in ranges


def _shows(operands: Operands, order: Reduction) -> list[int]:
    return [operands[position] for position, _, _ in order]


def _written(operands: Operands, order: Reduction) -> list[int]:
    return [product(operands[first : last + 1]) for _, first, last in order]


def _steps(operands: Operands, order: Reduction, names: Sequence[str] = DIGITS, hedge: str = "") -> list[str]:
    """The first operand opens the first step."""
    pairs = list(zip(_shows(operands, order), _written(operands, order), strict=True))
    steps = [f"{hedge}{names[operand]} {names[state]}" for operand, state in pairs[1:]]
    return [f"{names[pairs[0][0]]} {steps[0]}", *steps[1:]]


def _reducer(make: Callable[[int], Reduction], names: Sequence[str] = DIGITS) -> Callable:
    def write(operands: Operands, rng: random.Random) -> list[str]:
        return [*_steps(operands, make(len(operands)), names), f"= {product(operands)}"]

    return write


def _hedged(operands: Operands, rng: random.Random) -> list[str]:
    answer = product(operands)
    return [*_steps(operands, forward(len(operands)), hedge="maybe "), f"check {answer}", f"= {answer}"]


def _direct(operands: Operands, rng: random.Random) -> list[str]:
    return [f"= {product(operands)}"]


def _irrelevant(operands: Operands, rng: random.Random) -> list[str]:
    other = tuple(rng.randrange(ORDER) for _ in operands)
    return [*_steps(other, forward(len(other))), f"= {product(operands)}"]


TEACHERS = {
    "F": Teacher(_reducer(forward), "forward: from the left"),
    "B": Teacher(_reducer(backward), "backward: from the right, the same words and length as F"),
    "M": Teacher(_reducer(middle_out), "middle-out: right and left in turn"),
    "H": Teacher(_hedged, "forward, with 'maybe' before each pair and a closing check"),
    "N": Teacher(_reducer(forward, LETTERS), "forward, in letters"),
    "S": Teacher(_reducer(skipping), "terse: forward, every second state"),
    "D": Teacher(_direct, "no trace: the answer alone"),
    "C": Teacher(_irrelevant, "the forward trace of another problem, then the right answer", sound=False),
}

CHAIN = World(
    name="chain",
    words=(*DIGITS, "?", ":", "=", *LETTERS, "maybe", "check"),
    splits={
        "train": Split("train", SIZES),
        "validation": Split("validation", SIZES),
        "test": Split("test", SIZES),
    },
    teachers=TEACHERS,
    errors=ERRORS,
    draw=draw,
    read=read,
    answer=lambda operands: str(product(operands)),
    measure=len,
    judge_question=judge,
    extract=lambda completion: after_last(completion, "="),
)
