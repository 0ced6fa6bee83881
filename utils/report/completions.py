"""The completions sampled during online RL, as the report shows them."""

from pathlib import Path

from utils.rewards import answer_text

QUARTERS = 4  # of the run
EACH = 2  # best completions per quarter, and as many worst ones
COLUMNS = ("step", "prompt", "completion", "advantage")  # the others are rewards


def dialogue_text(dialogue: str | list[dict]) -> str:
    """A prompt or a completion as readable text: turns in order, tool calls after →, tool results after ←."""
    if isinstance(dialogue, str):
        return dialogue
    lines = []
    for message in dialogue:
        if message["role"] == "tool":
            lines.append(f"← {message['content']}")
            continue
        text = answer_text([message]) if message["role"] == "assistant" else message["content"]
        lines += [text] if text else []
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            lines.append(f"→ {function['name']} {function['arguments']}")
    return "\n".join(lines)


def best_and_worst(folder: Path) -> list[dict]:
    """The completions with the highest and the lowest advantage of each quarter of the run, if any were kept.

    Returns:
        {"first", "last": steps, "reward": their mean, "best", "worst": [{"prompt", "completion", "rewards",
        "advantage"}]} per quarter.
    """
    files = sorted((folder / "completions").glob("step-*.parquet"))
    if not files:
        return []
    import pandas  # only online RL needs it

    table = pandas.concat([pandas.read_parquet(path) for path in files])
    quarters = []
    for quarter in range(QUARTERS):
        first, last = (table["step"].max() * part / QUARTERS for part in (quarter, quarter + 1))
        part = table[(first < table["step"]) & (table["step"] <= last)]
        rows = part.sort_values("advantage", kind="stable").drop_duplicates(["prompt", "completion"])
        if len(rows):
            quarters.append(
                {
                    "first": part["step"].min(),
                    "last": part["step"].max(),
                    "reward": part["reward"].mean(),
                    "best": [with_rewards(row) for row in rows.tail(EACH)[::-1].to_dict("records")],
                    "worst": [with_rewards(row) for row in rows.head(EACH).to_dict("records")],
                }
            )
    return quarters


def with_rewards(row: dict) -> dict:
    return row | {"rewards": {name: value for name, value in row.items() if name not in COLUMNS}}
