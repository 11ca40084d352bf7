"""The studies of which teachers to mix: their verdicts follow from the rows, whatever those say."""

import math

import pytest

from experiments import adaptive_routing, admission_rules, real_teachers, real_teachers_picture
from mixdistill.studies.results import Results
from mixdistill.studies.study import Row, Verdict

SEEDS, PROBLEMS = 3, 100


def row(arm, seed, share, numbers=None):
    """With a share of right answers."""
    return Row(arm, seed, {"test": [problem < share * PROBLEMS for problem in range(PROBLEMS)]}, numbers or {})


def routed(shares, **others) -> Verdict:
    """Of routers whose students have this share, the rest as it always was."""
    known = {"best single": 0.67, "pooled": 0.2, "compatible pair": 0.97, **others}
    accuracy = known | {name: shares.get(name, 0.2) for name in adaptive_routing.ROUTERS}
    rows = [row(arm, seed, share) for arm, share in accuracy.items() for seed in range(SEEDS)]
    return adaptive_routing.verdict(Results(rows))


def test_a_router_has_to_beat_one_teacher_and_come_close_to_the_pair():
    assert routed(dict.fromkeys(adaptive_routing.ROUTERS, 0.97)).outcome == "holds"
    found = routed({"disagreement": 0.96, "bandit": 0.67})
    assert found.outcome == "holds in part"
    assert "disagreement (+0.29" in found.words
    assert "no better than one teacher: bandit" in found.more
    assert routed({}).outcome == "overturned"


@pytest.mark.parametrize("study", [adaptive_routing, admission_rules, real_teachers])
def test_nothing_is_said_before_there_are_rows(study):
    found = study.verdict(Results([]))
    assert found.outcome == "not testable at this scale"
    assert found.words.startswith("Not run yet: ")


def test_the_better_single_teacher_is_chosen_on_validation_problems():
    rows = [row("F", 0, 0.1, {"validation": 0.7}), row("H", 0, 0.9, {"validation": 0.6}), row("H", 1, 0.9)]
    (found,) = adaptive_routing.derive(rows)
    assert found.arm == "best single"
    assert sum(found.outcomes["test"]) == 10


def admitted(**shares) -> Verdict:
    """Of rules with this accuracy, as rule_world."""
    known = {"chain: F": 0.67, "walk: F": 0.98, "chain: pooled": 0.2, "walk: pooled": 0.35}
    known |= {"walk: F+K": 0.57, "walk: F+N": 0.9, "walk: F, half the tokens": 0.94}
    known |= {f"{world}: verdicts": 0.0 for world in ("reach", "maze")}
    for world in admission_rules.TRAINED:
        for rule in admission_rules.RULES:
            known[f"{world}: {rule}"] = shares.get(f"{rule.split()[0]}_{world}", 0.2)
    told = {
        "conflict in C": 1.0,
        "conflict F-K": 0.06,
        "conflict F-N": 0.47,
        "late F-K": 0.18,
        "late F-N": 0.09,
        "anchor NLL": 0.05,
    }
    rows = [row(arm, seed, share, told) for arm, share in known.items() for seed in range(SEEDS)]
    return admission_rules.verdict(Results(rows))


def test_a_rule_has_to_stand_on_both_worlds_and_win_where_coverage_is_complementary():
    assert admitted(conflict_chain=0.98, conflict_walk=0.98).outcome == "holds"
    found = admitted(gate_chain=0.68, gate_walk=0.97)
    assert found.outcome == "holds in part"
    assert "F+K on walk is -0.370" in found.more
    assert "(harmful); conflict says apart (0.06 bits), disagreement apart (0.18)" in found.more
    assert "(harmless); conflict says apart (0.47 bits), disagreement together (0.09)" in found.more
    assert "C, who writes the traces of other problems, is let in by conflict on reach, maze." in found.more
    assert admitted().outcome == "overturned"


def of_fit(order, spread=0.0):
    """Rows in which students of the models come out in this order on unseen teachers, and RSR ranks them as listed."""
    rows = []
    for seed in range(SEEDS):
        fits = {f"{fit} {name}": float(k) for fit in real_teachers.FITS for k, name in enumerate(real_teachers.MODELS)}
        pairs = [(a, b) for a in real_teachers.POOL for b in real_teachers.POOL]
        told = {f"conflict {a}-{b}": 0.02 for a, b in pairs}
        told |= {f"tau {a}~{b}": 1.0 for a in real_teachers.FITS for b in real_teachers.FITS}
        goals = {"human": 4.0, "unseen": 4.0}
        rows.append(Row(real_teachers.ANCHOR, seed, {}, {**fits, **told, **goals}))
        shifted = order if seed or not spread else order[::-1]
        rows += [
            Row(name, seed, {}, {"human": 4.0, "unseen": 3.0 + 0.1 * shifted.index(name)})
            for name in real_teachers.MODELS
        ]
        rows += [Row(name, seed, {}, {"human": 3.9, "unseen": 2.9}) for name in real_teachers.MIXES]
    return Results([*rows, *real_teachers.derive(rows)])


def test_the_ratio_foretells_or_does_not():
    order = list(real_teachers.MODELS)
    agrees = real_teachers.verdict(of_fit(order))
    assert agrees.outcome == "holds"  # low is better, and the first has the lowest
    assert "-0.100" in agrees.words  # the mixes against the best single model
    assert real_teachers.verdict(of_fit(order[::-1])).outcome == "overturned"
    assert real_teachers.verdict(of_fit(order, spread=1.0)).outcome == "not testable at this scale"


def test_measures_speak_for_a_teacher_in_their_own_direction():
    results = of_fit(list(real_teachers.MODELS))
    assert results.mean("ranking", "tau rank_surprisal_ratio unseen") == pytest.approx(1.0)
    assert results.mean("ranking", "tau grape unseen") == pytest.approx(-1.0)
    assert math.isnan(results.mean("ranking", "tau grape human"))  # all alike: no order


def test_the_picture(tmp_path):
    real_teachers_picture.draw(tmp_path / "picture.png", of_fit(list(real_teachers.MODELS)))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
