"""The figures of a run as text: the table of before and after, and the transcripts worth reading first."""

from transformers import Trainer

from utils.evaluation import Evaluation
from utils.files import visible

EXPLAINED = {
    "heldout_loss": "mean loss per supervised token of the held-out rows",
    "answer_tokens": "mean length of the greedy answers, in tokens",
    "kl": "KL(trained model || original model) per token, in nats, along the trained model's greedy answers",
    "logp_chosen": "mean log-probability of the held-out chosen answers",
    "logp_rejected": "mean log-probability of the held-out rejected answers",
    "reward_margin": "implicit reward of the chosen answer minus that of the rejected one (0 before, by definition)",
    "reward_accuracy": "share of held-out pairs with a margin above 0",
}
HEADS = ["metric", "before (95% CI)", "after (95% CI)", "change", "paired test", "n"]
TRANSCRIPTS = 24  # in the report; all of them are in evaluation/*.json


def training_figures(trainer: Trainer, logs: list[dict]) -> dict:
    seconds = max((log.get("seconds", 0.0) for log in logs), default=0.0)
    tokens = int(trainer.state.num_input_tokens_seen)
    losses = [log["loss"] for log in logs if "loss" in log]
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def table_rows(metrics: dict) -> list[list[str]]:
    """One row of text per metric, in the columns of HEADS."""
    rows = []
    for name, change in metrics["change"].items():
        before, after = metrics["before"][name], metrics["after"][name]
        guard = f" (guard {metrics['guards'][name]:g})" if name in metrics["guards"] else ""
        difference = f"{change['value']:+.3f}" if abs(change["value"]) < 10 else f"{change['value']:+.1f}"
        p_value = "p < 0.001" if change["p_value"] < 0.001 else f"p = {change['p_value']:.3f}"
        rows.append([name + guard, with_interval(before), with_interval(after), difference, p_value, str(after["n"])])
    return rows


def with_interval(figure: dict) -> str:
    value = digits(figure["value"])
    return value if figure["low"] is None else f"{value} ({digits(figure['low'])} to {digits(figure['high'])})"


def digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def legend(metrics: dict) -> str:
    """What the metrics are, except for the scores, which have the names of their functions."""
    return "; ".join(f"{name}: {text}" for name, text in EXPLAINED.items() if name in metrics["change"])


def shorten(text: str, most: int = 240) -> str:
    text = str(visible(text)).replace("\n", "⏎")
    return text if len(text) <= most else text[:most] + " …"


def prompt_text(prompt: list[dict] | str) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['content']}" if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)


def choose(before: Evaluation, after: Evaluation, most: int) -> list[tuple[dict, dict]]:
    """The transcripts to read first, as (row before, row after), alternating between those that are newly wrong, newly
    right, still wrong and still right by their first score.
    """
    groups: dict[tuple, list] = {(True, False): [], (False, True): [], (False, False): [], (True, True): []}
    for first, last in zip(before.rows, after.rows, strict=True):
        right = [(value > 0, last["scores"].get(name, 0) > 0) for name, value in first["scores"].items()]
        groups[right[0] if right else (False, False)].append((first, last))
    chosen: list[tuple[dict, dict]] = []
    while len(chosen) < most and any(groups.values()):
        chosen += [group.pop(0) for group in groups.values() if group]
    return chosen[:most]
