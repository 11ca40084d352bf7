"""On-policy distillation: who says what about the student's own completions. Plain data for recipes."""

import dataclasses
import re
from collections.abc import Mapping

from mixdistill.errors import UserError
from mixdistill.traces.trace import Trace

ANY = "*"  # the reference of prompts whose teacher has none of its own
PARTS = re.compile(r"\{(prompt|solution|answer)\}")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A student whose log-probabilities of the drawn tokens are recorded. `workdir` None: the student itself.

    `context` is what it is given in place of the prompt; `{prompt}`, `{solution}` and `{answer}` stand for those of the
    recorded trace. A reference that is told the solution is no better teacher for that: told too much, it stops
    hedging and checking, and a student that follows it loses out of distribution (arXiv:2603.24472). Watch the marker
    rate and the length, and end the stage when they fall (`recipe.handover.Falls`).
    """

    workdir: str | None
    context: str = "{prompt}"

    def __post_init__(self):
        if not PARTS.search(self.context):
            raise UserError(
                f"a reference's context is {self.context!r}; it has to hold {{prompt}}, {{solution}} or {{answer}}"
            )

    def asked(self, trace: Trace) -> str:
        """The prompt that it is given for this trace."""
        parts = {"prompt": trace.prompt, "solution": trace.text, "answer": trace.reference or trace.answer}
        return PARTS.sub(lambda found: parts[found[1]], self.context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teaching:
    """Settings of on-policy distillation. Raises `UserError`.

    `references` go by the teacher whose prompts they answer for, or by "*": one a prompt, never a blend. With `top_k`
    their most likely tokens are recorded, too. With `probes`, the prompt's reference first answers that many times
    itself: where the verifier finds less than the share `trusted` of these right, the prompt is not distilled but
    reinforced (arXiv:2609.02998). `own_share` is GKD's lambda (arXiv:2306.13649): the share of the batches that hold
    the student's completions; the others hold the recorded ones.
    """

    references: Mapping[str, Reference]
    top_k: int = 0
    probes: int = 0
    trusted: float = 2 / 3
    own_share: float = 1.0

    def __post_init__(self):
        if not self.references:
            raise UserError(f"teaching needs a reference; give one for each teacher, or one named {ANY!r}")
        if self.top_k < 0 or self.probes < 0:
            raise UserError(f"teaching top_k is {self.top_k}, probes {self.probes}; they are 0 (none) or more")
        if self.probes and any(reference.workdir is None for reference in self.references.values()):
            raise UserError("probes are for references that stay as they are; give each of them a workdir")
        for name in ("trusted", "own_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"teaching {name} is {getattr(self, name)}; it is a share, from 0 to 1")
