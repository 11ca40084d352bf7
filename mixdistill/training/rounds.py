"""Branches of a run: who has one, how long a round is, when a stage of them may end, and what pilots decided."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mixdistill.data.corpus import Corpus
from mixdistill.data.mixture import Mixture, check_weights
from mixdistill.data.planner import in_turn
from mixdistill.errors import UserError, unknown
from mixdistill.objective import Tally
from mixdistill.recipe import Recipe
from mixdistill.recipe.parameters import OWN_NLL, Merge, PilotMix
from mixdistill.training import branches
from mixdistill.training.branches import Rule
from mixdistill.training.position import Position
from mixdistill.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Of a recipe whose shards are open. A stage is given by its number."""

    recipe: Recipe
    corpora: tuple[Corpus, ...]  # one a stage
    teachers: tuple[str, ...]

    def rules(self) -> list[Rule]:
        """Of all stages that have branches. Raises `UserError` for stages whose branches keep different things."""
        if len({type(one.branches) for one in self.recipe.stages if one.branches}) > 1:
            raise UserError(f"recipe {self.recipe.name!r} has pilots and merges; a run has branches of one kind")
        return [self.rule(stage) for stage, one in enumerate(self.recipe.stages) if one.branches]

    def turns(self, stage: int) -> int:
        """Train steps of a branch."""
        return self._source(stage).turns or 1

    def count(self, stage: int) -> int:
        """Branches of a round."""
        return len(self._among(stage))

    def may_end(self, position: Position, spent: bool) -> bool:
        """Whether the position's stage is over, given that its budget is: branches are trained in whole rounds, and
        pilots in one."""
        made = self.recipe.stages[position.stage].branches
        if made is None:
            return spent
        steps = self.turns(position.stage) * self.count(position.stage)
        whole = position.stage_train_steps > 0 and position.stage_train_steps % steps == 0
        return whole and (spent or not isinstance(made, Merge))

    def rule(self, stage: int) -> Rule:
        """What becomes of the branches of a stage. Raises `UserError` for weights of teachers that have no branch."""
        made, among = self.recipe.stages[stage].branches, self._among(stage)
        if isinstance(made, PilotMix):
            slack = None if self.recipe.stages[stage].verifier is None else made.slack
            return branches.piloting(among, len(self.teachers), self.turns(stage), made.limit, slack)
        assert made is not None
        names = [self.teachers[k] for k in among]
        weights = made.weights or dict.fromkeys(names, 1.0)
        if strange := sorted(set(weights) - set(names)):
            raise unknown("teacher with a branch", strange[0], names)
        check_weights(weights)
        shares = np.array([weights.get(name, 0.0) for name in names])
        merging = branches.merging(shares / shares.sum(), made.scale)
        return branches.keeping_adapters(merging, among, len(self.teachers)) if self.recipe.adapters else merging

    def examined(
        self, stage: int, end: Callable[[TrainState, Any], TrainState]
    ) -> Callable[[TrainState, Position, Mapping[str, Tally]], TrainState]:
        """Applies `end` to the state after the last train step of a branch and its accuracy."""
        verifier, turns = self.recipe.stages[stage].verifier, self.turns(stage)

        def after(state: TrainState, position: Position, tallies: Mapping[str, Tally]) -> TrainState:
            if position.stage_train_steps % turns:
                return state
            right = tallies[f"held_out/{verifier}"]
            return end(state, np.float32(right.sum / right.weight if right.weight else np.nan))

        return after

    def turned_away(self, state: TrainState, stage: int) -> frozenset[str]:
        """Teachers whose pilots, in an earlier stage, were not admitted."""
        piloted = [k for k, one in enumerate(self.recipe.stages[:stage]) if isinstance(one.branches, PilotMix)]
        if not piloted:
            return frozenset()
        admitted = np.asarray(jax.device_get(state.memory[branches.MEMORY]["kept"]["admitted"]))
        return frozenset(self.teachers[k] for k in self._among(piloted[-1]) if not admitted[k])

    def decisions(self, state: TrainState, position: Position) -> list[dict[str, Any]]:
        """What the pilots of a stage that is over have decided, for the ledger; [] if it had none."""
        stage = self.recipe.stages[position.stage]
        if not isinstance(stage.branches, PilotMix):
            return []
        kept = jax.device_get({k: v for k, v in state.memory[branches.MEMORY]["kept"].items() if k != "best"})
        who = {self.teachers[k]: k for k in self._among(position.stage)}
        known = ("nll", "accuracy") if stage.verifier else ("nll",)
        return [
            {
                "train_step": position.train_step,
                "event": "pilots",
                "stage": stage.name,
                "judge": stage.verifier or OWN_NLL,
                "admitted": [name for name, k in who.items() if kept["admitted"][k]],
                "turned away": [name for name, k in who.items() if not kept["admitted"][k]],
                **{part: {name: _known(kept[part][k]) for name, k in who.items()} for part in known},
            }
        ]

    def _source(self, stage: int) -> Mixture:
        source = self.recipe.stages[stage].source
        assert isinstance(source, Mixture)
        return source

    def _among(self, stage: int) -> tuple[int, ...]:
        return in_turn(self.corpora[stage], self._source(stage))


def _known(value: Any) -> float | None:
    return None if value < 0 else round(float(value), 6)
