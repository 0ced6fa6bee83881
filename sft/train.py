"""Supervised fine-tuning (SFT): the model learns to answer as the examples do.

    python sft/train.py --config configs/sft_tiny.yaml            # offline, CPU, about a minute
    accelerate launch --config_file configs/accelerate/ddp.yaml sft/train.py --config configs/sft_qwen.yaml

Any field of trl.SFTConfig or trl.ModelConfig may stand in the YAML or as a --flag.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from utils.source import read_config, refusals_told, run_main

FORMS = [("messages",), ("prompt", "completion"), ("text",)]


def to_training_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, a row of one of TRL's formats out.

    The formats: `messages`; `prompt` and `completion` (as messages or text); `text`. `tools` may go with messages.
    """
    if "question" in row and "answer" in row:  # openai/gsm8k and its like
        ask, reply = {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
        return {"prompt": [ask], "completion": [reply]}
    form = next((form for form in FORMS if set(form) <= row.keys()), tuple(row))  # other columns stay to be named
    return {name: row[name] for name in (*form, "tools", "chat_template_kwargs", "metric") if name in row}


def main() -> None:
    source = read_config(__doc__)  # before the slow imports: a mistake in the YAML is told at once

    from trl import SFTConfig, SFTTrainer

    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.named import load_metrics
    from utils.preflight import preflight
    from utils.report import report_if_stopped, write_report
    from utils.run import begin, open_run

    config = parse_config(source, SFTConfig)
    config.training.eval_packing = False  # held-out rows are measured one by one
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    train, heldout = load_splits(config, to_training_row, has_template=bool(tokenizer.chat_template))
    metrics = load_metrics(config, heldout)
    model, adapter = load_model(config), load_adapter(config)
    with refusals_told("SFTTrainer"):
        trainer = SFTTrainer(
            model=model,
            args=config.training,
            train_dataset=train,
            eval_dataset=heldout if len(heldout) else None,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    run.follow(trainer)
    checked = preflight(trainer, config, train, heldout, metrics)  # looks at the very tensors that will be trained on
    if config.recipe.check:
        return
    begin(run, config, train, heldout)
    before = evaluate(trainer, heldout, metrics, config, run)
    if not run.load_trained(trainer):  # killed after its last step: nothing is left to train
        with report_if_stopped(run, config, trainer, checked, before):
            trainer.train(resume_from_checkpoint=run.checkpoint)
    save_model(trainer, config)
    after = evaluate(trainer, heldout, metrics, config, run, before)
    write_report(run, config, trainer, checked, before, after)


if __name__ == "__main__":
    run_main(main)
