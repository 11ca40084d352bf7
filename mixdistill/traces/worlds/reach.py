"""REACH: which of four nodes can be reached from a source, in words; chance is 1 in 4.

A search that keeps a set of what it has seen: another kind of reasoning than CHAIN's products, and the walking half of
WALK, whose node names it shares. The graph is a tree below the source, another tree with the three false candidates,
and an edge from that one into the first, which a search backwards meets.

Prompt "A to B . C to D . .. which of P Q R S from A :", completion "trace so P". A trace is a search, forwards ("from A
see B C") or backwards ("into P see X"), one node a step.
"""

import itertools
import random
from collections import deque
from collections.abc import Iterator, Sequence

from mixdistill.traces.worlds.reach_graph import Links, Question, distances, draw, read, shortest_way
from mixdistill.traces.worlds.walk import NODES
from mixdistill.traces.worlds.world import Judgement, Split, Teacher, World, after_last, joined

SMALL = tuple(name.lower() for name in NODES)  # the second notation
SIZES = (2, 3, 4)
ERRORS = ("malformed", "mixed", "unseen", "repeated", "edges", "unfinished", "answer")
OPENERS = ("from", "into", "not", "check", "path", "so")


def judge(question: Question, completion: str) -> Judgement:
    """Valid is a search in any order, in one direction and notation, or a way alone. The errors: words that form no
    trace; both directions; a node that was not seen before; one looked at twice; neighbours that are not all and only
    its neighbours; an end too early or too late; nothing but the answer."""
    correct = after_last(completion, "so") == question.answer
    error = _error(question, completion.split()) or ("" if correct else "answer")
    return Judgement(correct, error in ("", "answer"), error)


def _error(question: Question, words: list[str]) -> str:
    statements = _statements(words)
    if statements is None:
        return "malformed"
    openers = {opener for opener, _ in statements}
    if openers == {"path"} and len(statements) == 1:
        return "" if _is_way(question, statements[0][1]) else "edges"
    if openers & {"from", "check"} and openers & {"into", "not"}:
        return "mixed"
    if "path" in openers or "check" in [opener for opener, _ in statements[:-1]]:
        return "malformed"
    *_, (last, nodes) = statements
    if last == "check":
        return _forward_error(question, statements[:-1]) or ("" if _is_way(question, nodes) else "edges")
    return _forward_error(question, statements) if "from" in openers else _backward_error(question, statements)


def _statements(words: list[str]) -> list[tuple[str, list[str]]] | None:
    """(opener, nodes) of each statement but the last, "so P"; None when the words are none. A node that is looked at
    stands before what is seen."""
    words = [word for i, word in enumerate(words) if word != "maybe" or words[i + 1 : i + 2] != ["from"]]
    starts = [i for i, word in enumerate(words) if word in OPENERS]
    if len(starts) < 2 or starts[0] != 0 or words[-2:-1] != ["so"] or words[-1] not in NODES:
        return None
    parts = [words[a:b] for a, b in itertools.pairwise(starts)]
    bodies = [_nodes(part) for part in parts]
    names = {name for body in bodies for name in body or [""]}
    if None in bodies or not (names <= set(NODES) or names <= set(SMALL)):
        return None
    return [(part[0], [name.upper() for name in body or ()]) for part, body in zip(parts, bodies, strict=True)]


def _nodes(part: list[str]) -> list[str] | None:
    """The names in a statement; None when it is none."""
    opener, *rest = part
    if opener in ("from", "into"):
        seen = rest[2:] if rest[2:] != ["nothing"] else []
        return [rest[0], *seen] if len(rest) > 2 and rest[1] == "see" else None
    return rest if rest and opener != "so" and (opener != "not" or len(rest) == 1) else None


def _is_way(question: Question, nodes: list[str]) -> bool:
    linked = all(v in question.ahead.get(u, ()) for u, v in itertools.pairwise(nodes))
    return linked and nodes[0] == question.source and nodes[-1] == question.answer


def _look_error(links: Links, node: str, shown: list[str], seen: set[str], done: set[str]) -> str:
    if node not in seen:
        return "unseen"
    if node in done:
        return "repeated"
    return "" if sorted(shown) == sorted(links.get(node, ())) else "edges"


def _forward_error(question: Question, statements: list[tuple[str, list[str]]]) -> str:
    seen, done = {question.source}, set()
    for _, (node, *shown) in statements:
        if question.answer in seen:
            return "unfinished"
        error = _look_error(question.ahead, node, shown, seen, done)
        if error:
            return error
        seen.update(shown)
        done.add(node)
    return "" if question.answer in seen else "unfinished"


def _backward_error(question: Question, statements: list[tuple[str, list[str]]]) -> str:
    seen, done, dismissed = set(question.candidates), set(), set()
    for opener, (node, *shown) in statements:
        if question.source in seen:
            return "unfinished"
        error = (
            _dismissal_error(question, node, done, dismissed)
            if opener == "not"
            else _look_error(question.back, node, shown, seen, done)
        )
        if error:
            return error
        seen.update(shown)
        (dismissed if opener == "not" else done).add(node)
    return "" if question.source in seen else "unfinished"


def _dismissal_error(question: Question, node: str, done: set[str], dismissed: set[str]) -> str:
    if node in dismissed:
        return "repeated"
    ruled_out = node in question.candidates and done.issuperset(distances(question.back, node))
    return "" if ruled_out else "unfinished"


def _looks(question: Question, depth_first: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Nodes in the order of the search with what is seen from each, up to the answer."""
    waiting, seen = deque([question.source]), {question.source}
    while question.answer not in seen:
        node = waiting.popleft()
        shown = question.ahead[node]
        new = [other for other in dict.fromkeys(shown) if other not in seen]
        waiting.extendleft(new[::-1]) if depth_first else waiting.extend(new)
        seen.update(new)
        yield node, shown


def _look(opener: str, node: str, shown: Sequence[str]) -> str:
    return joined(opener, node, "see", *(shown or ["nothing"]))


def _breadth_first(question: Question, rng: random.Random) -> list[str]:
    return [*(_look("from", *look) for look in _looks(question)), f"so {question.answer}"]


def _depth_first(question: Question, rng: random.Random) -> list[str]:
    return [*(_look("from", *look) for look in _looks(question, depth_first=True)), f"so {question.answer}"]


def _in_small(question: Question, rng: random.Random) -> list[str]:
    looks = [_look("from", node.lower(), [name.lower() for name in shown]) for node, shown in _looks(question)]
    return [*looks, f"so {question.answer}"]


def _cautious(question: Question, rng: random.Random) -> list[str]:
    looks = [_look("maybe from", *look) for look in _looks(question)]
    return [*looks, joined("check", *shortest_way(question)), f"so {question.answer}"]


def _direct(question: Question, rng: random.Random) -> list[str]:
    return [joined("path", *shortest_way(question)), f"so {question.answer}"]


def _backwards(question: Question, rng: random.Random) -> list[str]:
    """Candidate after candidate; what one search has ruled out, the next does not look at again."""
    steps: list[str] = []
    done: set[str] = set()
    for candidate in question.candidates:
        waiting = deque([candidate])
        while waiting:
            node = waiting.popleft()
            if node in done:
                continue
            done.add(node)
            steps.append(_look("into", node, question.back[node]))
            if question.source in question.back[node]:
                return [*steps, f"so {question.answer}"]
            waiting.extend(question.back[node])
        steps.append(f"not {candidate}")
    raise AssertionError("one candidate is within reach")


def _irrelevant(question: Question, rng: random.Random) -> list[str]:
    other = read(draw(rng, Split("train", SIZES, "plain"), min(question.distance, 7)))
    return [*_breadth_first(other, rng)[:-1], f"so {question.answer}"]


TEACHERS = {
    "F": Teacher(_breadth_first, "forwards, breadth-first"),
    "D": Teacher(_depth_first, "forwards, depth-first, in the same words"),
    "B": Teacher(_backwards, "backwards from one candidate after the other"),
    "H": Teacher(_cautious, "as F, with 'maybe' before each look and the way as a check"),
    "N": Teacher(_in_small, "as F, in small letters"),
    "T": Teacher(_direct, "no search: the way alone"),
    "C": Teacher(_irrelevant, "the search of another problem, then the right answer", sound=False),
}

REACH = World(
    name="reach",
    words=(
        *("to", ".", "which", "of", ":", "see", "nothing", "maybe", *OPENERS),
        *NODES,
        *SMALL,
    ),
    splits={
        "train": Split("train", SIZES, "plain"),
        "validation": Split("validation", SIZES, "plain"),
        "test": Split("test", SIZES, "plain"),
        "long": Split("test", (5, 6, 7), "plain"),
        "bushy": Split("test", SIZES, "bushy"),
    },
    teachers=TEACHERS,
    errors=ERRORS,
    draw=draw,
    read=read,
    answer=lambda question: question.answer,
    measure=lambda question: question.distance,
    judge_question=judge,
    extract=lambda completion: after_last(completion, "so"),
)
