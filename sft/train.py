"""Supervised fine-tuning (SFT): the model learns to answer as the examples do.

    python sft/train.py --config configs/sft_tiny.yaml            # offline, CPU, about a minute
    accelerate launch --config_file configs/accelerate/ddp.yaml sft/train.py --config configs/sft_qwen.yaml

Any field of trl.SFTConfig or trl.ModelConfig can be set in the YAML or as a --flag. Different from TRL's defaults:

- Only the answers are learnt, because the shipped configs set assistant_only_loss. TRL also trains on the questions.
- Held-out rows are never packed (eval_packing), so each has a loss of its own. TRL packs them like the training rows.
- LoRA adapts all linear layers (lora_target_modules). PEFT's default for most models is q_proj and v_proj alone.
- On a GPU, LoRA's frozen base is bfloat16, at half the memory of TRL's float32. Without LoRA the weights stay float32,
  as bfloat16 would round small steps away.
- A gradient that is not finite stops the run before the step. TRL trains on, and its log shows an average instead.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from utils.config import as_user_error, read_config, run_main

FORMATS = [("messages",), ("prompt", "completion"), ("text",)]  # the columns of which a row needs one set


def to_training_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, a row of one of TRL's formats out.

    The formats: `messages`; `prompt` and `completion` (as messages or text); `text`. `tools` may go with messages.
    """
    if "question" in row and "answer" in row:  # openai/gsm8k and its like
        ask, reply = {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
        return {"prompt": [ask], "completion": [reply]}
    columns = next((columns for columns in FORMATS if set(columns) <= row.keys()), tuple(row))  # or they are named
    return {name: row[name] for name in (*columns, "tools", "chat_template_kwargs", "metric") if name in row}


def main() -> None:
    source = read_config(__doc__)  # before the slow imports: mistakes are reported at once

    from trl import SFTConfig, SFTTrainer

    from sft.checks import preflight
    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.generation import load_toolbox
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.report import report_if_stopped, write_report
    from utils.rewards import load_metrics
    from utils.run import open_run

    config = parse_config(source, SFTConfig)
    config.training.eval_packing = False  # held-out rows are measured one by one
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    train, heldout = load_splits(config, to_training_row, FORMATS, has_template=bool(tokenizer.chat_template))
    metrics, toolbox = load_metrics(config, heldout), load_toolbox(config)
    model, adapter = load_model(config), load_adapter(config)
    with as_user_error("SFTTrainer"):
        trainer = SFTTrainer(
            model=model,
            args=config.training,
            train_dataset=train,
            eval_dataset=heldout if len(heldout) else None,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    run.attach(trainer)
    checked = preflight(trainer, config, train, heldout, metrics, toolbox)  # the very tensors
    if config.recipe.check:
        return
    run.begin(config, train, heldout)
    before = evaluate(trainer, heldout, metrics, toolbox, config, run.folder)
    if not run.restore(trainer):  # killed after its last step: nothing is left to train
        with report_if_stopped(run, config, trainer, checked, before):
            trainer.train(resume_from_checkpoint=run.checkpoint)
    save_model(trainer, config)
    after = evaluate(trainer, heldout, metrics, toolbox, config, run.folder, before)
    write_report(run, config, trainer, checked, before, after)


if __name__ == "__main__":
    run_main(main)
