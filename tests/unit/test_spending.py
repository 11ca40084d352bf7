"""What a run says that it has spent, against counts by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixdistill.generation.drawn import Drawn
from mixdistill.generation.rewards import Rewards
from mixdistill.generation.sampler import Generated
from mixdistill.recipe.parameters import TeacherGradients
from mixdistill.students.config import DecoderConfig
from mixdistill.students.decoder import make_student
from mixdistill.students.families import tiny
from mixdistill.students.flops import drawing_of, forward, forward_parts, learning, learning_of
from mixdistill.students.student import Student
from mixdistill.training.spending import Spending, in_all, of_drawing, of_train_step, spending


def test_a_forward_pass_by_hand():
    config: DecoderConfig = tiny(64)
    parts = forward_parts(config, 3)
    assert parts["attention"] == 4 * config.layers * config.heads * config.head_dim * (1 + 2 + 3)
    assert parts["vocabulary"] == 2 * 64 * config.embed * 3
    assert sum(parts.values()) == forward(config, 3) == learning(config, 3) / 3


def test_a_foreign_student_is_known_by_its_size():
    student = Student(lambda key: {"w": jnp.zeros((3, 5))}, lambda p, b: None, lambda p: None, {}, 5)  # type: ignore[arg-type]
    assert learning_of(student, 7) == 6 * 15 * 7


@pytest.mark.parametrize(
    ("setting", "factor"), [(None, 3.0), (TeacherGradients(mode="exact"), 1 + 2 * 4), (TeacherGradients(), None)]
)
def test_a_train_step_costs_what_its_sequences_do(setting, factor):
    student, config = make_student(tiny(64)), tiny(64)
    tally = of_train_step(student, [3, 5, 3], setting, num_teachers=4)["flops"]
    once = 2 * forward(config, 3) + forward(config, 5)
    if factor is None:  # a forward more, and the way back through the vocabulary
        vocabulary = 2 * forward_parts(config, 3)["vocabulary"] + forward_parts(config, 5)["vocabulary"]
        assert float(tally.sum) == pytest.approx(4 * once + 2 * vocabulary)
    else:
        assert float(tally.sum) == pytest.approx(factor * once)
    assert float(tally.weight) == 1


def test_lines_add_up_by_stage():
    def line(stage, seen, kept, flops, steps):
        return {
            "stage": stage,
            "metrics": {"kept": kept / sum(seen.values()), "flops": flops / steps},
            "weights": {"teacher/tokens": seen, "kept": sum(seen.values()), "flops": steps},
        }

    lines = [line("a", {"x": 3, "y": 5}, 6, 10.0, 2), line("a", {"x": 1, "y": 1}, 2, 5.0, 1)]
    lines += [line("b", {"x": 4, "y": 0}, 1, 7.0, 1)]
    assert spending(lines) == {"a": Spending(10, 8, 15.0), "b": Spending(4, 1, 7.0)}
    assert in_all(lines) == Spending(14, 9, 22.0)
    assert str(in_all(lines)) == "14 tokens seen, 9 trained on, 22 FLOPs"
    assert in_all([]) == Spending(0, 0, 0.0)
    nothing = {"stage": "r", "metrics": {"kept": None}, "weights": {"kept": 0.0}}
    assert in_all([nothing]) == Spending(0, 0, 0.0)
    metrics = {"flops": 5.0, "rollout/flops": 2.0, "rollout/tokens": 30.0, "answers/flops": 4.0, "answers/tokens": 10.0}
    drawn = {"stage": "r", "metrics": metrics, "weights": {name: 2.0 for name in metrics}}
    assert in_all([drawn]) == Spending(0, 0, 22.0, 80, 12.0)
    assert str(in_all([drawn])) == "0 tokens seen, 0 trained on, 22 FLOPs (12 of them to draw 80 tokens)"


def test_drawing_goes_through_the_vocabulary_for_new_tokens_alone():
    student, config = make_student(tiny(64)), tiny(64)
    parts = forward_parts(config, 5)
    each = parts["layers"] + parts["attention"] + 2 * 64 * config.embed * 2
    assert drawing_of(student, 3, 2) == each < forward(config, 5)
    said = [Generated(np.zeros(2, np.int32), np.zeros(2, np.float32), True, np.zeros(0, np.float32))] * 4
    nothing = np.zeros(4, np.int32)
    drawn = Drawn(nothing, nothing, [[1, 2, 3]] * 4, said, Rewards(nothing, {}), nothing, nothing)
    found = of_drawing(student, drawn)
    assert found == {"answers/tokens": (8.0, 1.0), "answers/flops": (pytest.approx(4 * each), 1.0)}
    foreign = Student(lambda key: {"w": jnp.zeros((3, 5))}, lambda p, b: None, lambda p: None, {}, 5)  # type: ignore[arg-type]
    assert drawing_of(foreign, 3, 2) == 2 * 15 * 5
