"""Statistics against published values, and answers that do not depend on how they were batched."""

import json
import math

import pytest
from conftest import recipe

from utils.evaluation import Evaluation, compare
from utils.evaluation.statistics import mcnemar, mean_loss, paired_normal, score_interval, wilson


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263 and 0/20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_mcnemar_against_the_binomial():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(0, 5) == mcnemar(5, 0)
    assert mcnemar(6, 4) == pytest.approx(0.75390625)


def test_paired_normal():
    assert paired_normal([0.0, 0.0]) == 1.0
    assert paired_normal([1.0, -1.0, 1.0, -1.0]) == pytest.approx(1.0)
    assert paired_normal([1.0, 1.1, 0.9, 1.0]) < 1e-6


def test_mean_loss_weighs_rows_by_their_tokens():
    loss = mean_loss([(10.0, 10), (40.0, 20)])
    assert loss["value"] == pytest.approx(50 / 30)
    assert loss["low"] < loss["value"] < loss["high"]


def test_score_interval_of_fractions():
    found = score_interval([0.5, 0.25, 0.75, 0.5])
    assert found["value"] == 0.5
    assert found["high"] - found["value"] == pytest.approx(1.96 * math.sqrt(0.125 / 3 / 4))


def test_compare_pairs_rows():
    def state(scores):
        return Evaluation([{"scores": {"exact_match": s}, "tokens": 3} for s in scores], [(1.0, 2)] * len(scores), [])

    found = compare(state([0.0] * 10), state([1.0] * 8 + [0.0] * 2))["exact_match"]
    assert found == {"value": 0.8, "p_value": mcnemar(8, 0), "test": "McNemar exact"}


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
