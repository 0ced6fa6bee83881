"""Kahneman-Tversky optimisation (KTO): the model learns from answers that are each labelled good or bad.

    python kto/train.py --config configs/kto_tiny.yaml            # starts from what configs/sft_tiny.yaml makes
    accelerate launch --config_file configs/accelerate/ddp.yaml kto/train.py --config configs/kto_tiny.yaml

Any field of trl.KTOConfig or trl.ModelConfig can be set in the YAML or as a --flag. Different from TRL's defaults:

- The rows are shuffled by seed. TRL reads them in the file's order, where a batch may have one label only.
- The reference's log-probabilities are precomputed, without a second model in memory (with LoRA: the adapter is off).
- A batch of one row is refused: the loss estimates its KL term from the other rows of a batch.
- LoRA adapts all linear layers, and a gradient that is not finite stops the run, as in sft/train.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # finds utils/, wherever it is started from

from utils.config import as_user_error, read_config, run_main
from utils.data import BadRow, prompt_key, split_pair

FORMATS = [("prompt", "completion", "label")]  # the columns that a row needs
COLUMNS = ("prompt", "completion", "label", "tools", "chat_template_kwargs")
SCORING = ("answer", "metric")  # the gold answer, and which of eval_metrics scores it


def to_training_row(row: dict) -> dict:
    """The function to edit for your own data: any row in, a row of one of TRL's formats out.

    The format: `prompt` and `completion`, as messages or text, and `label`: true for a good completion, false for a
    bad one. Of a preference pair one side is taken. `answer` and `metric` are for the preflight and the evaluation.
    """
    if {"chosen", "rejected"} <= row.keys():
        row = one_side(row)
    if not isinstance(row.get("label", True), bool):  # TRL would take -1 and "no" for true
        raise BadRow(f"has the label {row['label']!r}; write true or false")
    return {name: row[name] for name in COLUMNS + SCORING if row.get(name) is not None}


def one_side(pair: dict) -> dict:
    """A preference pair as one labelled row: half of all prompts, by their hash, keep chosen, the others rejected.

    (TRL unpairs a data set into a thousand chosen, then a thousand rejected; read in this order, no batch has both.)
    """
    if isinstance(pair.get("prompt"), str) and isinstance(
        pair["chosen"], list
    ):  # HuggingFaceH4/ultrafeedback_binarized
        pair = {name: value for name, value in pair.items() if name != "prompt"}  # both sides begin with it too
    prompt, chosen, rejected = split_pair(pair)
    label = prompt_key(pair)[-1] % 2 == 0
    return pair | {"prompt": prompt, "completion": chosen if label else rejected, "label": label}


def main() -> None:
    source = read_config(__doc__)  # before the slow imports: mistakes are reported at once

    from trl import KTOConfig, KTOTrainer

    from kto.checks import preflight
    from kto.config import KTORecipe
    from utils.config import parse_config
    from utils.data import load_splits
    from utils.evaluation import evaluate
    from utils.generation import load_toolbox
    from utils.model import load_adapter, load_model, load_tokenizer, save_model
    from utils.report import report_if_stopped, write_report
    from utils.rewards import load_metrics
    from utils.run import open_run

    config = parse_config(source, KTOConfig, KTORecipe)
    run = open_run(config)  # begins, goes on from the newest whole checkpoint, or says that the run is finished
    tokenizer = load_tokenizer(config)
    train, heldout = load_splits(config, to_training_row, FORMATS, has_template=bool(tokenizer.chat_template))
    train = train.shuffle(seed=config.training.seed)  # the trainer reads them in order
    metrics, toolbox = load_metrics(config, heldout), load_toolbox(config)
    model, adapter = load_model(config), load_adapter(config)
    with as_user_error("KTOTrainer"):
        trainer = KTOTrainer(
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
