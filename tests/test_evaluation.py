"""Statistics against published values, and answers that do not depend on how they were batched."""

import json
import math

import pytest
from conftest import recipe

from utils.evaluation import Evaluation, compare
from utils.evaluation.statistics import mcnemar, mean_interval, paired_t, share_interval


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263 and 0/20
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)):
        found = share_interval([1.0] * right + [0.0] * (n - right))
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-5)
    assert share_interval([1.0] * 20)["high"] == 1.0


def test_mcnemar_against_the_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(0, 5) == mcnemar(5, 0)
    assert mcnemar(6, 4) == pytest.approx(0.75390625)


def test_paired_t():
    assert paired_t([1.0, -1.0, 1.0, -1.0]) == pytest.approx(1.0)
    # Student 1908, the sleep data: t = -4.0621 at 9 degrees of freedom
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert paired_t(sleep) == pytest.approx(0.002833, abs=5e-7)
    # Four rows prove little, however alike: the normal test would give 6e-24.
    assert paired_t([1.0, 1.3, 0.8, 1.1]) > 1e-3


def test_paired_t_without_spread():
    assert paired_t([0.0, 0.0]) == 1.0
    assert paired_t([2.0]) == 1.0
    assert paired_t([0.1 + 0.2, 0.3, 0.3]) == pytest.approx(2 / 2**3)


def test_mean_interval_weighs_rows_by_their_tokens():
    loss = mean_interval([10.0, 40.0, 30.0], [10, 20, 30])
    assert loss["value"] == pytest.approx(80 / 60)
    assert loss["low"] < loss["value"] < loss["high"]
    # Rows that deviate from the ratio by -10/3, 40/3 and -10
    error = math.sqrt((100 + 1600 + 900) / 9 * 3 / 2) / 60
    assert loss["high"] - loss["value"] == pytest.approx(4.302653 * error)


def test_mean_interval_is_students():
    found = mean_interval([0.5, 0.25, 0.75, 0.5])
    assert found["value"] == 0.5
    assert found["high"] - found["value"] == pytest.approx(3.182446 * math.sqrt(0.125 / 3 / 4))


def state(scores, kl=None):
    rows = [{"scores": {"exact_match": s}, "tokens": 3} | ({} if kl is None else {"kl": kl * 3}) for s in scores]
    return Evaluation(rows, [(1.0, 2)] * len(scores), [])


def test_compare_pairs_rows():
    found = compare(state([0.0] * 10), state([1.0] * 8 + [0.0] * 2))["exact_match"]
    assert found == {"value": 0.8, "p_value": mcnemar(8, 0), "test": "McNemar exact"}
    found = compare(state([0.0] * 4), state([0.5, 0.25, 0.75, 0.5]))["exact_match"]
    assert found == {"value": 0.5, "p_value": pytest.approx(0.016276, abs=1e-6), "test": "paired t"}


def test_one_row_is_measured_without_interval_or_significance():
    before, after = state([0.25], kl=0.0), state([0.75], kl=0.5)
    assert after.metrics()["exact_match"] == {"value": 0.75, "low": None, "high": None, "n": 1}
    assert state([1.0]).metrics()["exact_match"]["low"] == pytest.approx(0.2065, abs=5e-5)
    found = compare(before, after)
    assert found["kl"]["value"] == found["exact_match"]["value"] == 0.5
    assert {change["p_value"] for change in found.values()} == {1.0}


def test_rows_that_a_metric_scored_only_once_are_not_compared():
    before, after = state([0.0, 0.0, 1.0]), state([1.0, 1.0, 1.0])
    del before.rows[0]["scores"]["exact_match"], after.rows[1]["scores"]["exact_match"]
    assert compare(before, after)["exact_match"]["value"] == 0.0
    del after.rows[2]["scores"]["exact_match"]
    assert "exact_match" not in compare(before, after)


@pytest.mark.parametrize("size", [1, 12])
def test_batch_size_does_not_change_the_evaluation(finished_run, tmp_path, size):
    """Left padding is right: alone or together, a prompt gets the same answer and a row the same loss."""
    folder, _ = finished_run
    done = recipe(output_dir=tmp_path / "out", per_device_eval_batch_size=size)
    assert done.returncode == 0, done.stderr
    for when in ("before", "after"):
        here = json.loads((tmp_path / "out/evaluation" / f"{when}.json").read_text())
        there = json.loads((folder / "evaluation" / f"{when}.json").read_text())
        assert [row["completion"] for row in here["rows"]] == [row["completion"] for row in there["rows"]]
        for (mine, n), (theirs, m) in zip(here["losses"], there["losses"], strict=True):
            assert n == m
            assert mine == pytest.approx(theirs, rel=1e-4)
