"""Checks that several methods share: tokens, lengths, templates, near-copies, updates.

A check reports what is wrong, where, why it matters and what to write instead. It stops a run that would learn
nothing, or the wrong thing.
"""

import re
import unicodedata
from collections import Counter, defaultdict

import jinja2
import torch

from utils import trl_internals
from utils.data import answer_texts, split_prompt
from utils.generation import begin_dialogue, template_settings
from utils.preflight.context import OFTEN, SAMPLE, PreflightContext, evenly_spread, quantile

NEAR = 8  # words: the n-grams by which near-copies of held-out prompts are known


def check_tokens(context: PreflightContext) -> None:
    """One BOS, and a PAD that is not EOS."""
    tokenizer = context.tokenizer
    bos = tokenizer.bos_token_id
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        context.report(
            "pad_is_eos",
            f"PAD and EOS are both {tokenizer.eos_token}, so the end of an answer is masked out and the model never "
            "stops. Choose another pad_token in the model's tokenizer_config.json",
            stops=True,
        )
    doubled = [i for i, row in enumerate(context.tokenized) if bos is not None and row["input_ids"][:2] == [bos, bos]]
    if doubled:
        context.report(
            "double_bos",
            f"{context.describe_rows(doubled)} begin with {tokenizer.bos_token} twice, which no model has ever seen: "
            f"the text or the chat template writes it, and the tokenizer adds it again. Remove {tokenizer.bos_token} "
            "from the rows or the template",
            stops=True,
        )


def check_eos_trained(context: PreflightContext) -> None:
    tokenizer = context.tokenizer
    ended = sum(
        any(
            trained and token == tokenizer.eos_token_id
            for token, trained in zip(row["input_ids"], row["trained"], strict=True)
        )
        for row in context.tokenized
    )
    if ended < len(context.tokenized) * (1 - OFTEN):
        context.report(
            "eos_not_trained",
            f"only {ended:,} of {len(context.tokenized):,} sampled rows train the end of an answer "
            f"({tokenizer.eos_token}), so the model would not learn to stop. Set eos_token to the token that ends a "
            "turn in the chat template",
            stops=ended < len(context.tokenized) / 2,
        )


def check_lengths(context: PreflightContext) -> None:
    """What max_length cuts, and whether the model can hold it."""
    limit, lengths = context.args.max_length, sorted(len(row["input_ids"]) for row in context.tokenized)
    packed = context.packed
    longest = limit if packed else min(limit or lengths[-1], lengths[-1])
    if context.context_length and longest > context.context_length:
        context.report(
            "over_context",
            f"rows have up to {longest} tokens (max_length: {limit or 'null'}), and the model's context ends at "
            f"{context.context_length}: positions after that were never trained. Write max_length: "
            f"{context.context_length}",
            stops=True,
        )
    cuts = not packed or context.args.packing_strategy == "bfd"
    cut = [i for i, row in enumerate(context.tokenized) if limit and len(row["input_ids"]) > limit]
    if cut and cuts:
        end = vars(context.args).get("truncation_mode") == "keep_end"
        lost = sum(
            sum(row["trained"][: -limit or None] if end else row["trained"][limit:]) for row in context.tokenized
        )
        share = lost / max(1, sum(sum(row["trained"]) for row in context.tokenized))
        text = (
            f"max_length = {limit} cuts {context.describe_rows(cut)}, and {share:.1%} of the tokens to learn, the "
            f"ends of the answers first. Lengths: median {quantile(lengths, 0.5)}, 90% at most "
            f"{quantile(lengths, 0.9)}, longest {lengths[-1]}. "
        )
        wanted = quantile(lengths, 0.99)
        if context.context_length and wanted > context.context_length:
            text += f"The model's context ends at {context.context_length}: split the longer rows, or remove them"
        else:
            text += f"Write max_length: {wanted} to keep 99% of the rows whole"
        if packed:
            text += ", or packing_strategy: bfd_split, which cuts a long row in pieces and loses none"
        context.report("truncated_rows", text, stops=len(cut) > OFTEN * len(context.tokenized))
    if not packed and (dropped := len(context.train) - len(context.trainer.train_dataset)):
        context.report(
            "dropped_rows",
            f"the trainer left out {dropped:,} of {len(context.train):,} rows: max_length = {limit} leaves them "
            "nothing to learn. Raise it, or remove the rows",
            stops=dropped > len(context.train) / 2,
        )


def check_template(context: PreflightContext) -> None:
    """Training and generation must show the model the same text, and the answers' text must survive the template."""
    different, lost, altered, shown = [], [], [], ""
    toolbox = context.toolbox
    settings = template_settings(context.config, context.tokenizer, toolbox)
    comparable = toolbox.environment_factory is None  # an environment may show something else each time
    for i, (row, whole) in enumerate(zip(context.sample, context.tokenized, strict=True)):
        text = context.tokenizer.decode(whole["input_ids"])
        answers = answer_texts(row)
        if sum(answer.count("<think>") for answer in answers) > text.count("<think>"):
            lost.append(i)
        elif any(bare(answer) not in bare(text) for answer in answers):
            altered.append(i)
        try:
            dialogue = begin_dialogue(i, row, context.tokenizer, toolbox, settings) if comparable else None
            prompt_ids = dialogue.prompt_ids if dialogue else []
        except jinja2.TemplateError as error:
            context.report(
                "template_mismatch",
                f"the chat template cannot render the prompt of {context.describe_rows([i])} for generation: "
                f"{error}. Name another chat_template",
                stops=True,
            )
            return
        if whole["input_ids"][: len(prompt_ids)] != prompt_ids:
            different.append(i)
            if not shown:
                same = next(
                    n for n, (a, b) in enumerate(zip(prompt_ids, [*whole["input_ids"], None], strict=False)) if a != b
                )
                ends = (context.tokenizer.decode(ids[same : same + 12]) for ids in (prompt_ids, whole["input_ids"]))
                shown = "first difference: {!r} for generation, {!r} in training".format(*ends)
    often = OFTEN * len(context.sample)
    if lost:
        context.report(
            "lost_thinking",
            f"the chat template drops <think> from {context.describe_rows(lost)}, though those answers are trained "
            "on: the model would learn to answer without thinking there. Keep one answer a row (split the "
            "conversations), or name a chat_template that keeps <think>",
            stops=len(lost) > often,
        )
    if altered:
        context.report(
            "altered_text",
            f"the chat template or tokenizer changes the text of {context.describe_rows(altered)}: the model would "
            "learn another answer than yours. Compare the rendered row above with the file; name another "
            "chat_template",
            stops=len(altered) > often,
        )
    if different:
        context.report(
            "template_mismatch",
            f"{context.describe_rows(different)} begin with a different text than the prompt at generation "
            f"({shown}), so the model would train on a text that it never sees again. {template_fix(context)}",
            stops=len(different) > often,
        )


def template_fix(context: PreflightContext) -> str:
    """TRL replaces some templates by a variant for training; named in the config, it serves generation too."""
    used = trl_internals.training_template(context.trainer)
    for path in trl_internals.SHIPPED_TEMPLATES.glob("*_training.jinja"):
        if used != context.tokenizer.chat_template and used == path.read_text(encoding="utf-8"):
            return (
                f"TRL trains with a template of its own: write chat_template: {path.stem}, and generation has it too"
            )
    return "Name a chat_template that renders both alike, or end prompts on a whole word"


def bare(text: str) -> str:
    """A text without spacing, which templates and tokenizers may touch; compatible characters made one."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def check_near_copies(context: PreflightContext) -> None:
    """Training rows that hold nearly all word n-grams of a held-out prompt: its figures would mean less."""
    owners, sizes = defaultdict(set), {}
    for number, row in enumerate(context.heldout.select(evenly_spread(len(context.heldout), SAMPLE))):
        grams = ngrams(row)
        sizes[number] = len(grams)
        for gram in grams:
            owners[gram].add(number)
    found = []
    for i, row in enumerate(context.sample):
        shared = Counter(number for gram in ngrams(row) & owners.keys() for number in owners[gram])
        if any(count >= 0.8 * sizes[number] for number, count in shared.items()):
            found.append(i)
    if found:
        context.report(
            "near_copies",
            f"{context.describe_rows(found)} nearly repeat a held-out prompt, so the held-out scores would be too "
            "good. Remove them",
        )


def ngrams(row: dict, most: int = 500) -> set[int]:
    """Hashes of the n-grams in the first `most` words of what a row asks, or of its text if it has no prompt."""
    prompt, text = split_prompt(row)
    if isinstance(prompt, list):
        text = " ".join(message["content"] or "" for message in prompt if message["role"] == "user")
    words = re.findall(r"\w+", (prompt if isinstance(prompt, str) else text).lower())[:most]
    return {hash(tuple(words[i : i + NEAR])) for i in range(len(words) - NEAR + 1)}


def check_updates(context: PreflightContext) -> None:
    """bfloat16 keeps 8 bits of a weight: a step of Adam, about the learning rate, must not be rounded away."""
    rate, lost, count = context.args.learning_rate, 0, 0
    for weight in context.trainer.model.parameters():
        if weight.requires_grad and weight.dtype == torch.bfloat16 and weight.numel():
            some = weight.detach().flatten()[:: max(1, weight.numel() // 256)].float().abs()
            spacing = torch.exp2(torch.floor(torch.log2(some.clamp_min(1e-30))) - 7)
            lost, count = lost + (rate < spacing / 2).sum().item(), count + len(some)
    if count and lost > count / 2:
        context.report(
            "lost_updates",
            f"{lost / count:.0%} of the weights are held in bfloat16, whose next value is further away than a step "
            f"of learning_rate = {rate:g}: they would never move. Write dtype: float32 (bf16: true still computes in "
            "bfloat16)",
            stops=True,
        )
