"""Checks that every method shares, and what a check looks at.

A check is a function of a `Look` that adds what it finds to `config.findings`: what is wrong, where, why it matters
and what to write instead. Checks that stop a run are for what would teach nothing, or the wrong thing.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import jinja2
import torch
from datasets import Dataset

from utils.config import Config
from utils.generation import begin_dialogue, template_settings
from utils.model import SHIPPED_TEMPLATES, context_of
from utils.named import load_toolbox
from utils.rows import shorten, split_prompt

SAMPLE = 1_000  # rows, evenly spread, on which what is costly is done
NEAR = 8  # words: the n-grams by which near-copies of held-out prompts are known
OFTEN = 0.01  # the share of rows from which a fault of some rows stops the run


@dataclass
class Look:
    """What the checks look at: `raw[i]` is a row as given, `whole[i]` the same row as prepared, cut nowhere.

    Rows of `whole` have input_ids and `trained`, a mask of the tokens that are learnt.
    """

    trainer: object
    config: Config
    train: Dataset
    heldout: Dataset
    raw: list[dict]
    whole: list[dict]
    metrics: dict  # the functions of `eval_metrics`
    rollout: dict = field(default_factory=dict)  # GRPO: what the first rollout gave

    @property
    def tokenizer(self):
        return self.trainer.processing_class

    @property
    def args(self):
        return self.trainer.args

    @property
    def context(self) -> int | None:
        return context_of(self.trainer.model)

    def found(self, name: str, text: str, stops: bool = False) -> None:
        self.config.findings.add(name, text, stops)

    def is_stopped(self) -> bool:
        """Whether there is no run left to try: a finding that stops it is not accepted, or no row is left."""
        accepted = self.config.recipe.accept
        stopped = any(finding.stops and finding.name not in accepted for finding in self.config.findings)
        return stopped or len(self.trainer.train_dataset) == 0

    def rows(self, numbers: list[int]) -> str:
        """How many of the rows looked at, which training rows come first, and what the first one asks.

        Training rows are counted after mixing and splitting, so the text says more than the number.
        """
        places = evenly(len(self.train), len(self.whole))
        named = ", ".join(str(places[i] + 1) for i in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
        return (
            f"{len(numbers):,} of {len(self.whole):,} rows looked at (first {named}: {shorten(self.raw[numbers[0]])})"
        )


def evenly(count: int, most: int) -> list[int]:
    """At most `most` numbers from 0 to count, evenly spread."""
    return [i * count // min(count, most) for i in range(min(count, most))]


def token_pieces(ids: list[int], trained: list[bool], tokenizer, most: int = 400) -> list[tuple[str, bool]]:
    """Tokens as text, cut where training begins and ends; the first `most` of them."""
    runs: list[tuple[list[int], bool]] = []
    for token, learnt in list(zip(ids, trained, strict=True))[:most]:
        if not runs or runs[-1][1] != learnt:
            runs.append(([], learnt))
        runs[-1][0].append(token)
    return [(tokenizer.decode(part), learnt) for part, learnt in runs]


def check_tokens(look: Look) -> None:
    """PAD, EOS and BOS where they belong."""
    tokenizer = look.tokenizer
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if tokenizer.pad_token_id == eos:
        look.found(
            "pad_is_eos",
            f"PAD and EOS are both {tokenizer.eos_token}, so the end of an answer is masked out and the model never "
            "stops. Choose another pad_token in the model's tokenizer_config.json",
            stops=True,
        )
    doubled = [i for i, row in enumerate(look.whole) if bos is not None and row["input_ids"][:2] == [bos, bos]]
    if doubled:
        look.found(
            "double_bos",
            f"{look.rows(doubled)} begin with {tokenizer.bos_token} twice, which no model ever saw: the text or the "
            f"chat template writes it, and the tokenizer adds it again. Remove {tokenizer.bos_token} from the rows "
            "or the template",
            stops=True,
        )
    if look.config.method == "grpo":
        return
    ended = sum(
        any(learnt and token == eos for token, learnt in zip(row["input_ids"], row["trained"], strict=True))
        for row in look.whole
    )
    if ended < len(look.whole) * (1 - OFTEN):
        look.found(
            "eos_not_trained",
            f"only {ended:,} of {len(look.whole):,} rows looked at train the end of an answer "
            f"({tokenizer.eos_token}), so the model would not learn to stop. Set eos_token to the token that ends a "
            "turn in the chat template",
            stops=ended < len(look.whole) / 2,
        )


def check_lengths(look: Look) -> None:
    """What max_length cuts, and whether the model can hold it."""
    if look.config.method == "grpo":
        return  # its trainer cuts no prompts
    limit, lengths = look.args.max_length, sorted(len(row["input_ids"]) for row in look.whole)
    packed = look.config.method == "sft" and look.args.packing
    longest = limit if packed else min(limit or lengths[-1], lengths[-1])
    if look.context and longest > look.context:
        look.found(
            "over_context",
            f"rows have up to {longest} tokens (max_length: {limit or 'null'}), and the model's context ends at "
            f"{look.context}: positions after that were never trained. Write max_length: {look.context}",
            stops=True,
        )
    cuts = not packed or look.args.packing_strategy == "bfd"
    cut = [i for i, row in enumerate(look.whole) if limit and len(row["input_ids"]) > limit]
    if cut and cuts:
        end = look.args.truncation_mode == "keep_end"
        lost = sum(sum(row["trained"][: -limit or None] if end else row["trained"][limit:]) for row in look.whole)
        share = lost / max(1, sum(sum(row["trained"]) for row in look.whole))
        text = (
            f"max_length = {limit} cuts {look.rows(cut)}, and {share:.1%} of the tokens to learn, the ends of the "
            f"answers first. Lengths: median {quantile(lengths, 0.5)}, 90% at most {quantile(lengths, 0.9)}, longest "
            f"{lengths[-1]}. "
        )
        wanted = quantile(lengths, 0.99)
        if look.context and wanted > look.context:
            text += f"The model's context ends at {look.context}: split the longer rows, or remove them"
        else:
            text += f"Write max_length: {wanted} to keep 99% of the rows whole"
        if packed:
            text += ", or packing_strategy: bfd_split, which cuts a long row in pieces and loses none"
        look.found("truncated_rows", text, stops=len(cut) > OFTEN * len(look.whole))
    if not packed and (dropped := len(look.train) - len(look.trainer.train_dataset)):
        look.found(
            "dropped_rows",
            f"the trainer left out {dropped:,} of {len(look.train):,} rows: max_length = {limit} leaves them nothing "
            "to learn. Raise it, or remove the rows",
            stops=dropped > len(look.train) / 2,
        )


def quantile(ordered: list[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def spread(ordered: list[int]) -> str:
    """Lengths in words."""
    return f"median {quantile(ordered, 0.5)}, 99% at most {quantile(ordered, 0.99)}, longest {ordered[-1]}"


def check_template(look: Look) -> None:
    """Training and generation must show the model the same text, and the answers' text must survive the template."""
    otherwise, lost, altered, shown = [], [], [], ""
    toolbox = load_toolbox(look.config)
    settings = template_settings(look.config, look.tokenizer, toolbox)
    comparable = toolbox.environment_factory is None  # an environment says something else each time
    for i, (row, whole) in enumerate(zip(look.raw, look.whole, strict=True)):
        text = look.tokenizer.decode(whole["input_ids"])
        answers = answers_of(row)
        if sum(answer.count("<think>") for answer in answers) > text.count("<think>"):
            lost.append(i)
        elif any(bare(answer) not in bare(text) for answer in answers):
            altered.append(i)
        try:
            dialogue = begin_dialogue(i, row, look.tokenizer, toolbox, settings) if comparable else None
            asked = dialogue.prompt_ids if dialogue else []
        except jinja2.TemplateError as error:
            look.found(
                "template_mismatch",
                f"the chat template cannot render the prompt of {look.rows([i])} for generation: {error}. Name "
                "another chat_template",
                stops=True,
            )
            return
        if whole["input_ids"][: len(asked)] != asked:
            otherwise.append(i)
            if not shown:
                same = next(
                    n for n, (a, b) in enumerate(zip(asked, [*whole["input_ids"], None], strict=False)) if a != b
                )
                ends = (look.tokenizer.decode(ids[same : same + 12]) for ids in (asked, whole["input_ids"]))
                shown = "first difference: {!r} for generation, {!r} in training".format(*ends)
    often = OFTEN * len(look.raw)
    if lost:
        look.found(
            "lost_thinking",
            f"the chat template drops <think> from {look.rows(lost)}, though those answers are trained on: the model "
            "would learn to answer without thinking there. Keep one answer a row (split the conversations), or name "
            "a chat_template that keeps <think>",
            stops=len(lost) > often,
        )
    if altered:
        look.found(
            "altered_text",
            f"the chat template or tokenizer changes the text of {look.rows(altered)}: the model would learn another "
            "answer than yours. Compare the rendered row above with the file; name another chat_template",
            stops=len(altered) > often,
        )
    if otherwise:
        look.found(
            "template_mismatch",
            f"{look.rows(otherwise)} begin otherwise than the prompt that generation will show ({shown}), so the "
            f"model trains on a text that it will never see. {template_mend(look)}",
            stops=len(otherwise) > often,
        )


def template_mend(look: Look) -> str:
    """TRL replaces some templates by a variant for training; named in the config, it serves generation too."""
    used = vars(look.trainer).get("chat_template")
    for path in SHIPPED_TEMPLATES.glob("*_training.jinja"):
        if used != look.tokenizer.chat_template and used == path.read_text(encoding="utf-8"):
            return (
                f"TRL trains with a template of its own: write chat_template: {path.stem}, and generation has it too"
            )
    return "Name a chat_template that renders both alike, or end prompts on a whole word"


def answers_of(row: dict) -> list[str]:
    """The texts that a row teaches to say."""
    part = row.get("completion") or row.get("chosen") or row.get("messages") or ""
    if isinstance(part, str):
        return [part] if part else []
    return [message["content"] for message in part if message["role"] == "assistant" and message.get("content")]


def bare(text: str) -> str:
    """A text without spacing, which templates and tokenizers may touch; compatible characters made one."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def check_near_copies(look: Look) -> None:
    """Training rows that hold nearly all word n-grams of a held-out prompt: its figures would mean less."""
    owners, sizes = defaultdict(set), {}
    for number, row in enumerate(look.heldout.select(evenly(len(look.heldout), SAMPLE))):
        grams = ngrams(row)
        sizes[number] = len(grams)
        for gram in grams:
            owners[gram].add(number)
    found = []
    for i, row in enumerate(look.raw):
        shared = Counter(number for gram in ngrams(row) & owners.keys() for number in owners[gram])
        if any(count >= 0.8 * sizes[number] for number, count in shared.items()):
            found.append(i)
    if found:
        look.found(
            "near_copies",
            f"{look.rows(found)} nearly ask a held-out prompt, so the held-out figures would flatter. Remove them",
        )


def ngrams(row: dict, most: int = 500) -> set[int]:
    """Hashes of the n-grams in the first `most` words of what a row asks, or of its text if it asks nothing."""
    prompt, text = split_prompt(row)
    if isinstance(prompt, list):
        text = " ".join(message["content"] or "" for message in prompt if message["role"] == "user")
    words = re.findall(r"\w+", (prompt if isinstance(prompt, str) else text).lower())[:most]
    return {hash(tuple(words[i : i + NEAR])) for i in range(len(words) - NEAR + 1)}


def check_updates(look: Look) -> None:
    """bfloat16 keeps 8 bits of a weight: a step of Adam, about the learning rate, must not be rounded away."""
    rate, lost, count = look.args.learning_rate, 0, 0
    for weight in look.trainer.model.parameters():
        if weight.requires_grad and weight.dtype == torch.bfloat16 and weight.numel():
            some = weight.detach().flatten()[:: max(1, weight.numel() // 256)].float().abs()
            spacing = torch.exp2(torch.floor(torch.log2(some.clamp_min(1e-30))) - 7)
            lost, count = lost + (rate < spacing / 2).sum().item(), count + len(some)
    if count and lost > count / 2:
        look.found(
            "lost_updates",
            f"{lost / count:.0%} of the weights are held in bfloat16, whose next value is further away than a step "
            f"of learning_rate = {rate:g}: they would never move. Write dtype: float32 (bf16: true still computes in "
            "bfloat16)",
            stops=True,
        )


SHARED = (check_tokens, check_lengths, check_template, check_near_copies, check_updates)
