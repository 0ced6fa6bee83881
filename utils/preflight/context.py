"""What a check looks at, and small helpers that the checks of all methods share."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from utils.config import Config
from utils.data import describe_row
from utils.generation import Toolbox
from utils.model import context_length

SAMPLE = 1_000  # rows, evenly spread, on which what is costly is done
OFTEN = 0.01  # the share of rows from which a fault of some rows stops the run


@dataclass
class PreflightContext:
    """What the checks look at.

    Attributes:
        trainer: a TRL trainer, not trained yet.
        train, heldout: the rows as they were given to it.
        sample: training rows, evenly spread, as they were given.
        tokenized: the same rows as the trainer tokenizes them, without a length limit: each has input_ids and
            `trained`, a mask of the tokens that are learnt.
        metrics: the functions of `eval_metrics`.
        toolbox: what the model may call.
        rollout: online RL: what the first rollout gave.
    """

    trainer: Trainer
    config: Config
    train: Dataset
    heldout: Dataset
    sample: list[dict]
    tokenized: list[dict]
    metrics: dict[str, Callable]
    toolbox: Toolbox
    rollout: dict = field(default_factory=dict)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.trainer.processing_class

    @property
    def args(self) -> TrainingArguments:
        return self.trainer.args

    @property
    def context_length(self) -> int | None:
        return context_length(self.trainer.model)

    @property
    def packed(self) -> bool:
        return vars(self.args).get("packing", False)  # SFT alone can pack

    def report(self, name: str, text: str, stops: bool = False) -> None:
        self.config.findings.add(name, text, stops)

    def is_stopped(self) -> bool:
        """Whether there is no run left to try: a finding that stops it is not accepted, or no row is left."""
        accepted = self.config.recipe.accept
        stopped = any(finding.stops and finding.name not in accepted for finding in self.config.findings)
        return stopped or len(self.trainer.train_dataset) == 0

    def describe_rows(self, indexes: list[int]) -> str:
        """How many of the sampled rows, which training rows come first, and what the first one asks.

        Training rows are counted after mixing and splitting, so the text says more than the number.
        """
        places = evenly_spread(len(self.train), len(self.tokenized))
        named = ", ".join(str(places[i] + 1) for i in indexes[:3]) + (", ..." if len(indexes) > 3 else "")
        first = describe_row(self.sample[indexes[0]])
        return f"{len(indexes):,} of {len(self.tokenized):,} sampled rows (first {named}: {first})"

    def row_count(self, unit: str = "") -> str:
        """The line of the table about rows: how many there are, and of how many the figures are."""
        text = f"{len(self.train):,} {unit}to train on, {len(self.heldout):,} held out"
        if len(self.tokenized) < len(self.train):
            text += f"; the figures are of {len(self.tokenized):,} of them"
        return text


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` numbers from 0 to count, evenly spread."""
    return [i * count // min(count, most) for i in range(min(count, most))]


def token_pieces(
    ids: list[int], trained: list[bool], tokenizer: PreTrainedTokenizerBase, most: int = 400
) -> list[tuple[str, bool]]:
    """Tokens as text, cut where training begins and ends; the first `most` of them."""
    runs: list[tuple[list[int], bool]] = []
    for token, is_trained in list(zip(ids, trained, strict=True))[:most]:
        if not runs or runs[-1][1] != is_trained:
            runs.append(([], is_trained))
        runs[-1][0].append(token)
    return [(tokenizer.decode(part), is_trained) for part, is_trained in runs]


def quantile(ordered: list[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def describe_lengths(ordered: list[int]) -> str:
    return f"median {quantile(ordered, 0.5)}, 99% at most {quantile(ordered, 0.99)}, longest {ordered[-1]}"
