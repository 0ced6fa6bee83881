"""Online reinforcement learning (GRPO): the model tries, reward functions score, it learns from what scored better.

    python online_rl/train.py --config configs/grpo_tiny.yaml     # offline, CPU, two minutes; starts from the SFT's
    accelerate launch --config_file configs/accelerate/ddp.yaml online_rl/train.py --config configs/grpo_qwen.yaml

Any field of trl.GRPOConfig or trl.ModelConfig can be set in the YAML or as a --flag. The algorithm is TRL's default:

- loss_type: dapo averages over the tokens of all completions, so that long and short ones weigh the same per token.
- The baseline is the mean reward of a prompt's num_generations completions; scale_rewards: group divides by their
  standard deviation. reward_weights weights the reward functions before that.
- epsilon and epsilon_high clip the probability ratio. With one step per generation, as in configs/grpo_*.yaml, it is 1
  and nothing is clipped; num_iterations or steps_per_generation make it matter.
- beta: 0.0 means no KL penalty and no reference model. The evaluation measures the KL divergence instead.

Different from TRL's defaults:

- The rewards are tried on right and wrong answers, and a first rollout is sampled, before training (checks.py).
- A held-out score is measured beside the reward (heldout_points), which alone would not show reward hacking.
- Checkpoints fall between generations, so that a resumed run ends with the same weights (config.py).
- LoRA adapts all linear layers, and a gradient that is not finite stops the run, as in sft/train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from online_rl.config import OnlineRLRecipe
from utils.config import as_user_error, read_config, run_main

FORMATS = [("prompt",)]  # the columns that a row needs


def to_training_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, a row with a `prompt` out.

    All other columns go to the reward functions by their names: exact_match reads `answer`.
    """
    if "question" in row and "answer" in row:  # openai/gsm8k and its like
        return {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
    if "problem" in row and {"answer", "solution"} & row.keys():  # open-r1/OpenR1-Math-220k, HuggingFaceH4/MATH-500
        gold = row.get("answer") or row.get("solution")
        return {"prompt": [{"role": "user", "content": row["problem"]}], "answer": gold}
    return row


def main() -> None:
    source = read_config(__doc__, fields=OnlineRLRecipe)  # before the slow imports: mistakes are reported at once

    from trl import GRPOConfig, GRPOTrainer

    from online_rl.checks import preflight
    from online_rl.prompts import drop_long_prompts, with_system_prompt
    from online_rl.rollouts import watch_rollouts
    from online_rl.vllm_backend import check_backend
    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.generation import load_toolbox
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.report import report_if_stopped, write_report
    from utils.rewards import load_metrics, load_rewards
    from utils.run import open_run

    config = parse_config(source, GRPOConfig, OnlineRLRecipe)
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    row_function = with_system_prompt(to_training_row, config.recipe.system_prompt)
    train, heldout = load_splits(config, row_function, FORMATS, has_template=bool(tokenizer.chat_template))
    metrics, toolbox = load_metrics(config, heldout), load_toolbox(config)
    rewards = load_rewards(config)
    check_backend(config)  # is vLLM there, if it is asked for?
    model, adapter = load_model(config), load_adapter(config)
    train = drop_long_prompts(train, model, tokenizer, toolbox, config)
    with as_user_error("GRPOTrainer"):
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=config.training,
            train_dataset=train,
            eval_dataset=heldout if len(heldout) else None,
            processing_class=tokenizer,
            peft_config=adapter,
            tools=toolbox.tools,
            environment_factory=toolbox.environment_factory,
        )
    run.attach(trainer)
    checked = preflight(trainer, config, train, heldout, metrics, toolbox)  # the very tensors
    if config.recipe.check:
        return
    run.begin(config, train, heldout)
    before = evaluate(trainer, heldout, metrics, toolbox, config, run.folder)
    watch_rollouts(trainer, heldout, metrics, toolbox, config, before)  # the true score stands beside the reward
    if not run.restore(trainer):  # killed after its last step: nothing is left to train
        with report_if_stopped(run, config, trainer, checked, before):
            trainer.train(resume_from_checkpoint=run.checkpoint)
    save_model(trainer, config)
    after = evaluate(trainer, heldout, metrics, toolbox, config, run.folder, before)
    write_report(run, config, trainer, checked, before, after)


if __name__ == "__main__":
    run_main(main)
