"""A run directory is read as it is, recognised by files, and refused in one sentence where it is none."""

from __future__ import annotations

import pytest

from lightning_e5.errors import UserError
from lightning_e5.report.figures import drawing as figures
from lightning_e5.results.run import RunData


def test_results_carry_what_the_weights_went_through(make_run):
    run = RunData(make_run())
    results = {r.model: r for r in run.results()}
    assert list(results) == ["bm25", "first", "second"]
    assert results["second"].trained_by == ("noisy", "tuned")
    assert (results["second"].pairs, results["second"].tokens, results["second"].steps) == (420, 4200, 20)
    assert results["second"].seconds == 122.0
    assert results["bm25"].trained_by == () and not results["bm25"].is_encoder and results["first"].is_encoder
    assert set(results["first"].metrics) == {"ndcg@10", "recall@100"}
    assert run.reference("docs") == "bm25"


def test_filter_ranks_and_samples(make_run):
    run = RunData(make_run())
    assert run.filters() == ["filter"]
    ranks = run.filter_ranks("filter")
    assert ranks.k == 2 and ranks.keep_N.sum() == 4 and ranks.planted_N.sum() == 3
    samples = run.filter_samples("filter", 3)
    assert [s.keep for s in samples] == [True] * 3 + [False] * 3
    assert all(s.keep == (s.rank <= 2) and s.query == s.passage for s in samples)
    assert samples == run.filter_samples("filter", 3)


def test_texts_are_split_at_line_feeds_only(make_run):
    run = RunData(make_run())
    assert run.passages("docs") == {"d": "T \u2028x"}
    assert run.queries("docs")["q3"] == "question 3"


def test_a_torn_log_line_is_left_out(make_run):
    path = make_run()
    with (path / "stages" / "noisy" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')
    assert len(RunData(path).learning_curves()["noisy"]) == 10


def test_what_is_no_run_is_refused(make_run, tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        RunData(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunData(tmp_path)
    with pytest.raises(UserError, match="did you mean 'second on docs'"):
        RunData(make_run()).per_query("secund", "docs")


def test_an_unfinished_run_names_the_stage_reached(make_run):
    path = make_run(finished=False)
    run = RunData(path)
    assert not run.finished and run.results()
    with pytest.raises(UserError, match="its report is not written"):
        _ = run.metrics
    (path / "stages" / "tuned" / "manifest.json").unlink()
    with pytest.raises(UserError, match="stage 'tuned' is not done"):
        _ = RunData(path).metrics
    assert RunData(path, given={"a": 1.0}).metrics == {"a": 1.0}


def test_share_above_equals_the_loop():
    import numpy as np

    a, b = np.array([0.1, 0.5, 0.5, 0.9], dtype=np.float32), np.array([0.5, 0.2, 0.9], dtype=np.float32)
    loop = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert figures._above(a, b) == pytest.approx(loop)


def test_running_mean_equals_the_loop():
    import numpy as np

    values = np.arange(7.0) ** 2
    expected = [values[max(0, i - 2) : i + 1].mean() for i in range(7)]
    assert figures.running_mean(values, 2) == pytest.approx(expected)


def test_pictures_are_the_same_for_the_same_run(make_run):
    path = make_run()
    for draw in (figures.loss_curves, figures.ndcg_intervals, figures.cosine_distributions):
        assert figures.svg(draw(RunData(path))) == figures.svg(draw(RunData(path)))
