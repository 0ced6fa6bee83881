"""What the model tried in online RL: kept as Parquet while it trains, and shown in the report."""

from html import escape
from pathlib import Path

import pandas
from transformers import TrainerCallback

from utils.answers import text_of

EACH = 2  # best and worst completions of each quarter in the report
QUARTERS = 4


def total_rewards(trainer) -> list[float]:
    """The weighted rewards of the newest generation; a function that gave None (NaN here) has no part in the sum."""
    weights, scores = trainer.reward_weights.tolist(), trainer._logs["rewards"].values()
    return [sum(w * s for w, s in zip(weights, row, strict=True) if s == s) for row in zip(*scores, strict=True)]


def equal_groups(trainer) -> float:
    """The share of the newest generation's groups whose completions all got one reward.

    TRL's frac_reward_zero_std is 0 wherever a sum is no float: eight times 1.2 have a spread of 1e-7, for TRL not 0.
    """
    totals, size = total_rewards(trainer), trainer.num_generations
    groups = [totals[start : start + size] for start in range(0, len(totals), size)]
    return sum(max(group) - min(group) < 1e-6 for group in groups) / len(groups)


class Completions(TrainerCallback):
    """At every log: the completions of the newest generation, of all processes, with rewards and advantages.

    As text. (TRL's log_completions keeps messages as nested columns; tool calls whose arguments differ in type would
    end the run there.)
    """

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = self.trainer._logs
        if "reward" not in logs or not kept["prompt"]:
            return
        state.log_history[-1]["frac_reward_zero_std"] = equal_groups(self.trainer)
        if not state.is_world_process_zero:
            return
        own = ("step", "prompt", "completion", "reward", "advantage")
        rewards = {f"rewards/{n}" if n in own else n: list(scores) for n, scores in kept["rewards"].items()}
        table = {
            "step": [state.global_step] * len(kept["prompt"]),
            "prompt": [as_text(prompt) for prompt in kept["prompt"]],
            "completion": [as_text(completion) for completion in kept["completion"]],
            **rewards,
            "reward": total_rewards(self.trainer),
            "advantage": list(kept["advantages"]),
        }
        folder = Path(args.output_dir, "completions")
        folder.mkdir(exist_ok=True)
        part = folder / "part"
        pandas.DataFrame(table).to_parquet(part)
        part.replace(folder / f"step-{state.global_step:06d}.parquet")


def as_text(said: str | list[dict]) -> str:
    """A prompt or a completion for reading: turns in order, tool calls and what tools said marked by arrows."""
    if isinstance(said, str):
        return said
    lines = []
    for message in said:
        if message["role"] == "tool":
            lines.append(f"← {message['content']}")
            continue
        text = text_of([message]) if message["role"] == "assistant" else message["content"]
        lines += [text] if text else []
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            lines.append(f"→ {function['name']} {function['arguments']}")
    return "\n".join(lines)


def html_completions(folder: Path) -> str:
    """The most and the least advantageous completions of each quarter of the run; nothing where none were kept."""
    files = sorted((folder / "completions").glob("step-*.parquet"))
    if not files:
        return ""
    tables = [pandas.read_parquet(path) for path in files]
    steps = [table["step"][0] for table in tables]
    sections = []
    for quarter in range(QUARTERS):
        first, last = (steps[-1] * part / QUARTERS for part in (quarter, quarter + 1))
        part = [table for table, step in zip(tables, steps, strict=True) if first < step <= last]
        if not part:
            continue
        rows = pandas.concat(part).sort_values("advantage", kind="stable")
        rows = rows.drop_duplicates(["prompt", "completion"])
        shown = "".join(
            f"<div><h4>{name}</h4>{''.join(html_completion(row) for row in chosen.to_dict('records'))}</div>"
            for name, chosen in (("best", rows.tail(EACH)[::-1]), ("worst", rows.head(EACH)))
        )
        mean = pandas.concat(part)["reward"].mean()
        sections.append(
            f"<article><h4>steps {part[0]['step'][0]} to {part[-1]['step'][0]}: mean reward {mean:.3f}</h4>"
            f'<div class="pair">{shown}</div></article>'
        )
    return (
        "<h2>What it tried</h2><p>Of each quarter of the run, the completions with the highest and the lowest "
        "advantage: those that did much better, or worse, than the others for the same prompt. All that were kept "
        f"are in <code>completions/</code>.</p>{''.join(sections)}"
    )


def html_completion(row: dict) -> str:
    rewards = {name: value for name, value in row.items() if name not in ("step", "prompt", "completion", "advantage")}
    told = ", ".join(f"{name} {value:g}" for name, value in rewards.items())
    return (
        f'<pre class="asked">{escape(row["prompt"])}</pre><pre>{escape(row["completion"])}</pre>'
        f'<p class="soft">{escape(told)}; advantage {row["advantage"]:+.2f}</p>'
    )
