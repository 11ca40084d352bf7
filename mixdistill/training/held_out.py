"""Held-out problems, answered greedily while a stage trains: what hand-over rules look at."""

import numpy as np
from jax.sharding import Mesh

from mixdistill.data.corpus import open_corpus
from mixdistill.errors import UserError
from mixdistill.generation.measures import held_out_measures
from mixdistill.generation.rollouts import HeldOut
from mixdistill.mesh import Rules
from mixdistill.objective import Tally
from mixdistill.students.student import Params, Student
from mixdistill.training.asks import find_asks
from mixdistill.training.drawing import Drawing
from mixdistill.training.position import Position
from mixdistill.training.spending import of_drawing


class Exam:
    """The problems of a stage's `HeldOut` (None: no problems), ready to be put to a student."""

    def __init__(
        self,
        setting: HeldOut | None,
        student: Student,
        tokenizer: str,
        mesh: Mesh,
        rules: Rules,
        turns: int | None = None,
    ):
        """`tokenizer` is the hash of the run's. They are asked after every turn, too, if the stage has `turns` of so
        many train steps. Raises `UserError` for other shards and where there are too few."""
        self._setting, self._turns, self._student = setting, turns, student
        if setting is None:
            return
        source = setting.source
        corpus = open_corpus(source.asked)
        found = corpus.shards[0].manifest["tokenizer"]
        if found != tokenizer:
            raise UserError(
                f"the held-out shards {corpus.shards[0].path} were made with tokenizer {found[:12]}, the run has "
                f"{tokenizer[:12]}; prepare them again with that tokenizer"
            )
        self._asks = find_asks(source, corpus)[: setting.problems]
        if len(self._asks) < setting.problems:
            raise UserError(
                f"held-out problems={setting.problems}, and {', '.join(source.folders)} has {len(self._asks)} that fit"
            )
        self._drawing = Drawing(source, corpus, student, 0, mesh, rules)

    def due(self, position: Position) -> bool:
        """Whether it is time."""
        often = [n for n in (self._setting and self._setting.every, self._turns) if n is not None]
        return self._setting is not None and any(position.stage_train_steps % n == 0 for n in often)

    def __call__(self, params: Params, position: Position) -> dict[str, Tally]:
        """Tallies "held_out/..." if it is time; else none."""
        if not self.due(position):
            return {}
        drawn, _ = self._drawing.round(params, self._asks, (0, 0), position.train_step)
        return {
            name: Tally(*map(np.asarray, pair))  # pyright: ignore[reportArgumentType]
            for name, pair in (held_out_measures(drawn) | of_drawing(self._student, drawn)).items()
        }
