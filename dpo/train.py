"""Direct preference optimisation (DPO): the model learns to prefer the chosen answers to the rejected ones.

    python dpo/train.py --config configs/dpo_tiny.yaml            # starts from what configs/sft_tiny.yaml makes
    accelerate launch --config_file configs/accelerate/ddp.yaml dpo/train.py --config configs/dpo_qwen.yaml

Any field of trl.DPOConfig or trl.ModelConfig can be set in the YAML or as a --flag. Different from TRL's defaults:

- The reference model's log-probabilities are computed once, before training, and cached on disk (dpo/config.py sets
  precompute_ref_log_probs). TRL keeps a second model in memory. With LoRA, both switch the adapter off instead.
- The tiny configs add an SFT term (loss_type: [sigmoid, sft]). With sigmoid alone, TRL's default, both answers may
  become less likely: the loss sees only their difference.
- Pairs whose answers are equal are dropped: they have no gradient.
- LoRA adapts all linear layers, and a gradient that is not finite stops the run, as in sft/train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from utils.config import as_user_error, read_config, run_main

FORMATS = [("chosen", "rejected")]  # the columns that a row needs; the prompt is one, or the head of both
COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "score_chosen", "score_rejected")
SCORING = ("answer", "metric")  # the gold answer, and which of eval_metrics scores it


def to_training_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, a row of one of TRL's formats out.

    The formats: `prompt`, `chosen` and `rejected`, as messages or text; the prompt may also stand at the head of both
    sides. The sides' scores, `answer` and `metric` are for the preflight and the evaluation.
    """
    if not {"chosen", "rejected"} <= row.keys():
        return row  # its columns are named in the message
    if isinstance(row.get("prompt"), str) and isinstance(row["chosen"], list):  # HuggingFaceH4/ultrafeedback_binarized
        row = {name: value for name, value in row.items() if name != "prompt"}  # stands at the head of both sides too
    return {name: row[name] for name in COLUMNS + SCORING if row.get(name) is not None}


def main() -> None:
    source = read_config(__doc__)  # before the slow imports: mistakes are reported at once

    from trl import DPOConfig, DPOTrainer

    from dpo.checks import preflight
    from dpo.config import DPORecipe
    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.generation import load_toolbox
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.report import report_if_stopped, write_report
    from utils.rewards import load_metrics
    from utils.run import open_run

    config = parse_config(source, DPOConfig, DPORecipe)
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    train, heldout = load_splits(config, to_training_row, FORMATS, has_template=bool(tokenizer.chat_template))
    metrics, toolbox = load_metrics(config, heldout), load_toolbox(config)
    model, adapter = load_model(config), load_adapter(config)
    with as_user_error("DPOTrainer"):
        trainer = DPOTrainer(
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
