"""Every study runs, arm by arm, and what is committed of it is what its rows say."""

import pytest

from experiments import index
from experiments.development_data import development_data
from mixdistill.errors import UserError
from mixdistill.studies import publish, rows
from mixdistill.studies.study import load_study
from mixdistill.studies.sweep import Sweep, sweep


@pytest.mark.parametrize("name", index.STUDIES)
def test_all_arms_run(name, tmp_path):
    """As small as they get, so that none can rot; with the pages that are made of them."""
    study = load_study(name)
    if name == "real_teachers":
        _need_recorded_traces()
    what = Sweep(name, study, study.tiny, tmp_path / "results", tmp_path / "runs")
    sweep(what, what.missing(None, study.seeds[:1]), jobs=0)
    found = what.finished()
    assert sorted(found) == sorted((arm, study.seeds[0]) for arm in study.arms)
    results = publish.results_of(study, list(found.values()))
    publish.publish(study, list(found.values()), tmp_path / "results")
    for measure in study.measures:
        rows_with_it = [row for row in results.rows if measure.name in row.outcomes or measure.name in row.numbers]
        assert rows_with_it, f"no arm has the measure {measure.name}"
    for one, other, measure in study.comparisons:
        assert {one, other} <= set(results.arms), (one, other)
        assert measure in {m.name for m in study.measures}
    assert rows.read_all(tmp_path / "results" / rows.ALL)


def test_committed_pages_are_what_the_rows_say():
    assert index.stale() == []


@pytest.mark.parametrize("name", index.STUDIES)
def test_committed_rows_belong_to_the_study_as_it_is(name):
    study = load_study(name)
    found = rows.read_all(index.RESULTS / name / rows.ALL)
    marks = {arm: rows.fingerprint(study, arm, study.size) for arm in study.arms}
    assert {row["arm"] for row in found if row["fingerprint"] != marks.get(row["arm"])} == set()


def _need_recorded_traces():
    try:
        development_data()
    except UserError as error:
        pytest.skip(str(error))
