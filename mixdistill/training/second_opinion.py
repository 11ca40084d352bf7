"""A second opinion on undecidable disagreement: two pilots on anchor and candidate, one of them told who writes.

Both start from the anchor's student. In the second one a tag stands before every trace of the candidate. Where the
anchor's held-out content is much likelier with the tag than without, the student could not tell the two apart, and they
clash. Not tuned to a student: the threshold was found with pilots of 86,000 targets on two procedural worlds.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from mixdistill.data.sequences import Scored
from mixdistill.diagnostics.content import sample_traces
from mixdistill.diagnostics.undecidable import SKIP, SecondOpinion
from mixdistill.students.student import Params, Student
from mixdistill.traces.shards import Shards
from mixdistill.training.pilots import Pilots, Plan, content_nll, read_sequences

HELD_OUT = 300  # of the anchor's traces, or a tenth of them
TAUGHT = 4000  # traces of each teacher at most


def second_opinions(
    shards: Shards, student: Student, params: Params, anchor: str, candidates: Sequence[str], plan: Plan
) -> Iterator[tuple[str, SecondOpinion]]:
    """(candidate, opinion), each when its two pilots are done. A candidate or anchor of fewer than two traces is left
    out."""
    chosen = {name: order for name, order in sample_traces(shards, TAUGHT, seed=plan.seed).items() if len(order) > 1}
    candidates = [name for name in candidates if name in chosen]
    if anchor not in chosen or not candidates:
        return
    count = min(HELD_OUT, max(len(chosen[anchor]) // 10, 1))
    held, own = chosen[anchor][:count], read_sequences(shards, chosen[anchor][count:])
    longest = int(shards.index["num_tokens"][np.concatenate([chosen[n] for n in (anchor, *candidates)])].max())
    pilots = Pilots(student, params, plan, longest)
    for name in candidates:
        tag = unused_token(student.vocab_size, [*own, *read_sequences(shards, chosen[name])])
        (untagged, num_tokens), (tagged, _) = (
            _anchor_nll(pilots, [own, read_sequences(shards, chosen[name], given)], shards, held)
            for given in (None, tag)
        )
        yield name, SecondOpinion(untagged, tagged, num_tokens)


def _anchor_nll(
    pilots: Pilots, pools: Sequence[Sequence[Scored]], shards: Shards, held: np.ndarray
) -> tuple[float, int]:
    return content_nll(pilots.student, pilots.train(pools), shards, held, skip=SKIP)


def unused_token(vocab_size: int, sequences: Sequence[Scored]) -> int:
    """The last of the tokens that these sequences hold least often."""
    counts = np.zeros(vocab_size, np.int64)
    for sequence in sequences:
        counts += np.bincount(sequence.tokens, minlength=vocab_size)
    return int(np.flatnonzero(counts == counts.min())[-1])
