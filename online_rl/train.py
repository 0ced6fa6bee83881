"""Online reinforcement learning (GRPO): the model tries, reward functions score, it learns from what scored better.

    python online_rl/train.py --config configs/grpo_tiny.yaml     # offline, CPU, two minutes; starts from the SFT's
    accelerate launch --config_file configs/accelerate/ddp.yaml online_rl/train.py --config configs/grpo_qwen.yaml

Any field of trl.GRPOConfig or trl.ModelConfig may stand in the YAML or as a --flag.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from utils.source import read_config, refusals_told, run_main


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
    source = read_config(__doc__)  # before the slow imports: a mistake in the YAML is told at once

    from trl import GRPOConfig, GRPOTrainer

    from utils.backends import check_backend
    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.fields import OnlineRLConfig
    from utils.generation import drop_long_prompts
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.named import load_metrics, load_rewards, load_toolbox
    from utils.preflight import preflight
    from utils.report import report_if_stopped, write_report
    from utils.rollouts import watch_rollouts
    from utils.run import begin, open_run

    config = parse_config(source, GRPOConfig, OnlineRLConfig)
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    train, heldout = load_splits(config, to_training_row, has_template=bool(tokenizer.chat_template))
    metrics = load_metrics(config, heldout)
    rewards, toolbox = load_rewards(config), load_toolbox(config)
    check_backend(config)  # is vLLM there, if it is asked for?
    model, adapter = load_model(config), load_adapter(config)
    train = drop_long_prompts(train, model, tokenizer, config)
    with refusals_told("GRPOTrainer"):
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
    run.follow(trainer)
    checked = preflight(trainer, config, train, heldout, metrics)  # looks at the very tensors that will be trained on
    if config.recipe.check:
        return
    begin(run, config, train, heldout)
    before = evaluate(trainer, heldout, metrics, config, run)
    watch_rollouts(trainer, heldout, metrics, config, before)  # the true score stands beside the reward
    if not run.load_trained(trainer):  # killed after its last step: nothing is left to train
        with report_if_stopped(run, config, trainer, checked, before):
            trainer.train(resume_from_checkpoint=run.checkpoint)
    save_model(trainer, config)
    after = evaluate(trainer, heldout, metrics, config, run, before)
    write_report(run, config, trainer, checked, before, after)


if __name__ == "__main__":
    run_main(main)
