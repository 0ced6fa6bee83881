"""Silent failures: rewards that teach nothing, or the wrong thing."""

import json

from conftest import ROOT
from silent_cases import CALL_AND_RESULT, PREVENTED, STOPS, TRAIN, WARNS, case
from stage import tasks
from transformers import AutoModelForSequenceClassification

from utils.rewards import functions as rewards

ACCEPT = "accept: [equal_rewards, clipped_completions]"


@case("G3", "all rewards are equal", "loss 0 forever, no warning", STOPS, "online_rl.checks.check_rollout")
def test_equal_rewards(stage):
    done = stage.run("accept: [clipped_completions]", method="grpo")
    done.tells(
        "equal_rewards: in 100% of 8 groups all 4 completions got the same reward (mean 0.00)", "Take prompts that"
    )


@case(
    "G4",
    "a reward that returns NaN, fails on an empty answer, or returns too few scores",
    "loss 0, or a crash when it happens",
    STOPS,
    "online_rl.reward_checks.check_rewards",
)
def test_broken_reward(stage):
    rewards = {
        "nan": "[float('nan')] * len(completions)",
        "fails": "[1 / len(c[0]['content']) for c in completions]",
        "few": "[1.0]",
        "words": "['good'] * len(completions)",
    }
    own_rewards(stage, rewards)
    for name, said in {
        "nan": "nan gives nan for an empty answer (other): its group would have no gradient",
        "fails": "fails fails on an empty answer (other): ZeroDivisionError",
        "few": "few returns 1 scores for 8 completions. Return one for each completion",
        "words": "words gives 'good' for an empty answer (other), which is not a number",
    }.items():
        done = stage.run(f"{ACCEPT}\nreward_funcs: [my_rewards.{name}]", method="grpo")
        done.tells(f"bad_reward: {said}")


@case(
    "G5",
    "two reward functions with the same name",
    "adds them up in one column",
    STOPS,
    "online_rl.reward_checks.check_reward_names",
    without_it="zip() argument 2 is shorter than argument 1",  # two weights, and one column of scores
)
def test_same_names(stage):
    own_rewards(stage, {"exact_match": "[float(len(str(c))) for c in completions]"})
    done = stage.run(f"{ACCEPT}\nreward_funcs: [exact_match, my_rewards.exact_match]", method="grpo")
    done.tells("same_reward_names: 2 reward functions are called exact_match", "Rename one")


@case(
    "G6",
    '`accuracy_reward` on "The answer is 4.", or with a gold answer that is not mathematics',
    "scores 0, or None, for every row",
    WARNS,
    "online_rl.reward_checks.check_rewards",
)
def test_boxed_only(stage):
    rows = [row | {"solution": f"${n + 3}$", "answer": str(n + 3)} for n, row in enumerate(tasks(24))]
    done = stage.run(f"{ACCEPT}\nreward_funcs: [trl.rewards.accuracy_reward]", rows=rows, method="grpo")
    done.tells("WARNING   gold_not_best: accuracy_reward gives the rows' own right answers no more than wrong ones")
    done.tells("tells them apart only in \\boxed{}. Ask for that format in the prompt")
    rows = [row | {"solution": "it depends"} for row in tasks(24)]
    done = stage.run(f"{ACCEPT}\nreward_funcs: [trl.rewards.accuracy_reward]", rows=rows, method="grpo")
    done.tells("constant_reward: accuracy_reward gives None for every answer", "the form of the gold")


@case(
    "G10",
    "soft overlong punishment with the numbers it ships with",
    "never applies at the default completion length",
    STOPS,
    "online_rl.reward_checks.check_rewards",
)
def test_punishment_that_never_fires(stage):
    own_rewards(stage, {"soft": "PUNISH(**kwargs)"}, "from trl.rewards import get_soft_overlong_punishment as made\n"
                "PUNISH = made(max_completion_len=1280, soft_punish_cache=256)\n")  # fmt: skip
    done = stage.run(f"{ACCEPT}\nreward_funcs: [exact_match, my_rewards.soft]", method="grpo")
    done.tells(
        "constant_reward: soft gives 0.0 to right, wrong, empty and very long answers alike",
        "under max_completion_length = 8",
    )


@case(
    "G11",
    "a reward that can be earned without a right answer",
    "it shows only after training, in other measurements",
    WARNS,
    ("utils.run.alarms.score_fell", lambda *_: []),
)
def test_reward_hacking(stage):
    own_rewards(stage, {
        "right": "[float(str(c).strip().split('.')[0] == a) for c, a in zip(completions, kwargs['answer'])]",
        "many_ones": "[str(c).count('1') / 6 for c in completions]",
    })  # fmt: skip
    rows = [{"prompt": f"{a} + {b} =", "answer": str(a + b)} for a in range(20, 60) for b in range(2, 8)]
    text = "accept: [gold_not_best, constant_reward, equal_rewards, clipped_completions]\nheldout_fraction: 0.2\n"
    text += "learning_rate: 1e-2\nreward_funcs: [my_rewards.many_ones]\neval_metrics: [my_rewards.right]\n"
    text += "eval_prompts: 40\nmax_steps: 14\n"
    text += "max_completion_length: 6\nper_device_train_batch_size: 32"
    done = stage.run(text, rows=rows, method="grpo", flags=TRAIN)
    assert done.code == 0, done.said
    done.tells("ALARM     reward_hacking", "fell by", "while the training reward rose", "read the transcripts")
    alarms = json.loads((stage.folder / "out/metrics.json").read_text())["alarms"]
    assert "reward_hacking" in [alarm["name"] for alarm in alarms]


@case(
    "X11",
    "a reward that is higher for an empty answer than for the right one",
    "learns to say nothing",
    STOPS,
    "online_rl.reward_checks.compare_gold",
)
def test_gold_is_not_best(stage):
    own_rewards(stage, {"empty_is_best": "[-float(len(str(c))) for c in completions]"})
    done = stage.run(f"{ACCEPT}\nreward_funcs: [my_rewards.empty_is_best]", method="grpo")
    done.tells(
        "gold_not_best: empty_is_best gives -38 to an empty answer and -47", "to the right one", "Correct the function"
    )


@case(
    "X22",
    "GRPO with tools: a completion that is cut right after a tool result",
    "gives rewards the last message, so the tool's result is scored as the model's answer",
    PREVENTED,
    ("utils.rewards.answers.answer_text", lambda completion: completion[-1]["content"]),
    without_it="assert [1.0] == [0.0]",
)
def test_a_tool_is_no_answer(stage):
    assert rewards.exact_match([CALL_AND_RESULT], answer=["19"]) == [0.0]


def load_carelessly(name, dtype, key=""):
    return AutoModelForSequenceClassification.from_pretrained(ROOT / name, num_labels=1)


@case(
    "X23",
    "a language model without a trained head as the reward model",
    "initialises a random head and trains on its scores",
    STOPS,
    ("utils.model.load_reward_model", load_carelessly),
)
def test_random_judge(stage):
    rows = [{"prompt": f"{n} + 3 =", "answer": str(n + 3)} for n in range(24)]
    done = stage.run(f"{ACCEPT}\nreward_funcs: [tiny/base]", rows=rows, method="grpo")
    done.tells("reward_funcs: tiny/base is not a reward model: it lacks score.weight, and random weights would score")


@case(
    "X27",
    "GRPO with no metric besides the reward",
    "plots only the reward, which also rises when it is gamed",
    WARNS,
    "online_rl.checks.check_true_score",
)
def test_reward_alone(stage):
    done = stage.run(ACCEPT, method="grpo")
    done.tells("WARNING   no_true_score: nothing is measured on held-out prompts", "eval_metrics: [exact_match]")


@case(
    "X28",
    "GRPO with all rewards equal, and a weight such as 0.2 that is not exact in binary",
    "counts the groups as unequal: `frac_reward_zero_std` stays 0",
    STOPS,
    ("online_rl.rollouts.equal_groups", lambda trainer: trainer._metrics["train"]["frac_reward_zero_std"][-1]),
)
def test_equal_but_for_rounding(stage):
    own_rewards(stage, {"one": "[1.0 for c in completions]", "two": "[1.0 for c in completions]"})
    text = "accept: [clipped_completions, gold_not_best, constant_reward]\n"
    text += "reward_funcs: [my_rewards.one, my_rewards.two]\n"
    done = stage.run(
        f"{text}reward_weights: [1.0, 0.2]\nnum_generations: 8\nper_device_train_batch_size: 8", method="grpo"
    )
    done.tells("equal_rewards: in 100% of", "and such a group has no gradient")
    assert done.code == 2


def own_rewards(stage, functions, head=""):
    """my_rewards.py: the user's own reward functions."""
    text = head + "".join(f"def {n}(completions, **kwargs):\n    return {body}\n" for n, body in functions.items())
    stage.module("my_rewards", text)
