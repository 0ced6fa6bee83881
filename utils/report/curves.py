"""Curves of what was logged during training."""

import math
from pathlib import Path

CURVES = {
    "loss": "training loss",
    "eval_loss": "held-out loss",
    "reward": "training reward",
    "eval_reward": "training reward on held-out prompts",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
    "logps/chosen": "log-probability of chosen answers",
    "logps/rejected": "log-probability of rejected answers",
    "frac_reward_zero_std": "share of groups without a gradient",
    "completions/mean_length": "mean completion length",
    "entropy": "entropy",
    "mean_token_accuracy": "token accuracy",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
COLOURS = ("#e0701a", "#16a34a", "#a855f7", "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#64748b")


def draw_curves(logs: list[dict], path: Path) -> None:
    """Draw up to eight curves on a transparent background, in a grey that is legible on white and on black."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heldout = sorted({key for log in logs for key in log if key.startswith("heldout/")} - {"heldout/prompts"})
    drawn = {key: title for key, title in CURVES.items() if sum(log.get(key) is not None for log in logs) > 1}
    drawn = dict(list(drawn.items())[:8])
    rows = max(1, math.ceil(len(drawn) / 2))
    grey = "#8a8f98"
    with plt.rc_context({"text.color": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey}):
        figure, axes = plt.subplots(rows, 2, figsize=(9, 2.5 * rows), layout="constrained", squeeze=False)
        for axis, (key, title) in zip(axes.flat, drawn.items(), strict=False):
            points = [(log["step"], log[key]) for log in logs if log.get(key) is not None]
            axis.plot(*zip(*points, strict=True), color="#3b82f6", linewidth=1.6)
            for name, colour in zip(heldout if key == "reward" else [], COLOURS, strict=False):
                points = [(log["step"], log[name]) for log in logs if log.get(name) is not None]
                label = name.removeprefix("heldout/")
                axis.plot(*zip(*points, strict=True), "o--", color=colour, linewidth=1, label=label)
            if key == "reward" and heldout:
                axis.legend(fontsize=8, framealpha=0)
                title = "training reward and scores on held-out prompts"
            axis.set_title(title, fontsize=10)
            axis.grid(color=grey, alpha=0.25)
            axis.spines[:].set_visible(False)
        for axis in axes.flat[len(drawn) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("step")
        figure.savefig(path, dpi=130, transparent=True)
        plt.close(figure)
