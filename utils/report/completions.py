"""The completions that a model tried in online RL, as the report shows them."""

from html import escape
from pathlib import Path

import pandas

from utils.rewards import answer_text

EACH = 2  # best and worst completions of each quarter in the report
QUARTERS = 4


def dialogue_text(said: str | list[dict]) -> str:
    """A prompt or a completion for reading: turns in order, tool calls and what tools said marked by arrows."""
    if isinstance(said, str):
        return said
    lines = []
    for message in said:
        if message["role"] == "tool":
            lines.append(f"← {message['content']}")
            continue
        text = answer_text([message]) if message["role"] == "assistant" else message["content"]
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
