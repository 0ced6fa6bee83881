"""Alarms: pure rules over the trainer's log history."""

import pytest

from utils.run import find_alarms, score_fell


def logs(**columns):
    """{"loss": [...]} -> a log history, one entry a step."""
    count = len(next(iter(columns.values())))
    return [
        {"step": n + 1} | {key.replace("__", "/"): values[n] for key, values in columns.items()} for n in range(count)
    ]


def names(history):
    return [alarm.name for alarm in find_alarms(history)]


FALLING = [2.0 / (n + 1) for n in range(20)]


@pytest.mark.parametrize(
    ("history", "name", "step"),
    [
        (logs(loss=[*FALLING[:12], 4.0, *FALLING[13:]]), "loss_spike", 13),
        (logs(eval_loss=[2.0, 1.0, 1.2, 1.3]), "overfitting", 4),
        (logs(reward=[0.1] * 9, frac_reward_zero_std=[0.2, 1, 1, 1, 1, 1, 0, 0, 0]), "zero_advantages", 6),
        (logs(reward=[0.1] * 6, completions__clipped_ratio=[1.0] * 6), "clipped_completions", 5),
        (logs(reward=[0.1] * 12, entropy=[1.0] * 6 + [0.01] * 6), "entropy_collapsed", 11),
        (logs(logps__chosen=[-20.0] * 6 + [-60.0] * 6, logps__rejected=[-25.0] * 6 + [-90.0] * 6),
         "likelihoods_falling", 10),
        (logs(rewards__margins=[1.0, 5, 11, 12, 15, 20, 30]), "margins_exploding", 7),
        (logs(reward=[0.1] * 6 + [0.9] * 6, heldout__right=[None] * 5 + [0.6] + [None] * 5 + [0.3],
              heldout__prompts=[None] * 5 + [100] + [None] * 5 + [100]), "reward_hacking", 12),
        (logs(reward=[0.1] * 3, rewards__mine__mean=[0.1, float("inf"), 0.1]), "rewards_not_finite", 2),
    ],
)  # fmt: skip
def test_each_alarm_is_raised_once_with_its_step_and_what_to_do(history, name, step):
    [alarm] = find_alarms(history)
    assert (alarm.name, alarm.step) == (name, step)
    advice = ("Lower", "Train fewer", "Take harder", "Raise it", "Read the", "Mend the", "Fix the", "Correct the")
    assert any(words in alarm.text for words in advice)


@pytest.mark.parametrize(
    "history",
    [
        [],
        logs(loss=FALLING),
        logs(loss=[0.01, 0.2, 0.01, 0.3, 0.02, 0.01, 0.25] * 3, reward=[0.5] * 21),
        logs(eval_loss=[2.0, 1.0, 0.9, 0.91]),
        logs(reward=[0.2 + 0.03 * n for n in range(12)], frac_reward_zero_std=[0.5] * 12, entropy=[0.5] * 12),
        logs(logps__chosen=[-20.0] * 12, logps__rejected=[-20.0 - n for n in range(12)], rewards__margins=[2.0] * 12),
        logs(
            reward=[0.1] * 6 + [0.9] * 6,
            heldout__right=[None] * 5 + [0.3] + [None] * 5 + [0.6],
            heldout__prompts=[None] * 5 + [100] + [None] * 5 + [100],
        ),
        logs(
            reward=[0.1] * 3, rewards__mine__mean=[0.1, None, 0.1]
        ),  # None: the reward did not apply to that step's rows
        logs(loss=[1.0] * 12, entropy=[1.0] * 6 + [0.01] * 6),  # in SFT entropy falls, as it should
    ],
)
def test_a_healthy_run_raises_none(history):
    assert names(history) == []


def test_a_score_that_fell_is_reported_after_training():
    rising = logs(reward=[0.1] * 6 + [0.9] * 6)
    fell = {"exact_match": {"value": -0.2, "p_value": 0.001}, "heldout_loss": {"value": -1.0, "p_value": 0.001}}
    assert [alarm.name for alarm in score_fell(rising, fell)] == ["reward_hacking"]
    assert [alarm.name for alarm in score_fell(logs(loss=FALLING), fell)] == ["score_fell"]
    assert score_fell(rising, {"exact_match": {"value": -0.2, "p_value": 0.3}}) == []
    assert score_fell(rising, {"exact_match": {"value": 0.2, "p_value": 0.001}}) == []
