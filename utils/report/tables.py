"""The figures of a run as text: the table of before and after, and the transcripts worth reading first."""

from transformers import Trainer

from utils.evaluation import Evaluation

EXPLAINED = {
    "heldout_loss": "loss a supervised token of the held-out rows",
    "answer_tokens": "length of the greedy answers in tokens",
    "kl": "KL(model || model before) a token, in nats, along its own greedy answers",
    "logp_chosen": "log-probability of the held-out chosen answers",
    "logp_rejected": "of the rejected ones",
    "reward_margin": "implicit reward of chosen less that of rejected (0 before, by definition)",
    "reward_accuracy": "share of held-out pairs whose margin is above 0",
}


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
    """metric, before, after, change, p and n, as text."""
    rows = []
    for name, after in (metrics["after"] or {}).items():
        before, change = metrics["before"][name], metrics["change"][name]
        p = "p < 0.001" if change["p_value"] < 0.001 else f"p = {change['p_value']:.3f}"
        cells = [
            "{} ({} to {})".format(*(digits(m[key]) for key in ("value", "low", "high"))) for m in (before, after)
        ]
        guard = f" (guard {metrics['guards'][name]:g})" if name in metrics["guards"] else ""
        rows.append(
            [
                name + guard,
                *cells,
                f"{change['value']:+.3f}" if abs(change["value"]) < 10 else f"{change['value']:+.1f}",
                p,
                str(after["n"]),
            ]
        )
    return rows


def digits(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def legend(metrics: dict) -> str:
    """What the table's figures are, but for the scores, which bear the names of their functions."""
    return "; ".join(f"{name}: {text}" for name, text in EXPLAINED.items() if name in (metrics["after"] or {}))


HEADS = ["metric", "before (95%)", "after (95%)", "change", "paired test", "n"]


# Control characters but tabs and newlines, and those that turn the direction of writing, as Python escapes them.
CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F),
            *range(0x2066, 0x206A)) if chr(code) not in "\t\n"}  # fmt: skip


def visible(value: object) -> object:
    """Text whose control characters are seen, not obeyed."""
    return value.translate(CONTROLS) if isinstance(value, str) else value


def shorten(text: str, most: int = 240) -> str:
    text = visible(text).replace("\n", "⏎")
    return text if len(text) <= most else text[:most] + " …"


def prompt_text(prompt: list[dict] | str) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{m['content']}" if m["role"] == "user" else f"[{m['role']}] {m['content']}" for m in prompt)


def choose(before: Evaluation, after: Evaluation, most: int) -> list[tuple[dict, dict]]:
    """Transcripts worth reading first: one each of lost, gained, still wrong and kept, round and round."""
    groups: dict[tuple, list] = {(True, False): [], (False, True): [], (False, False): [], (True, True): []}
    for first, last in zip(before.rows, after.rows, strict=True):
        scored = [(first["scores"][name] > 0, last["scores"][name] > 0) for name in list(first["scores"])[:1]]
        groups[scored[0] if scored else (False, False)].append((first, last))
    chosen: list[tuple[dict, dict]] = []
    while len(chosen) < most and any(groups.values()):
        chosen += [group.pop(0) for group in groups.values() if group]
    return chosen[:most]
