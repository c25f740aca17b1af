"""Figures of a pruned student: what is left of each layer, and how far each layer is from the teacher's."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator, PercentFormatter

from distiller.figures import COLOURS, read_table, save_figure
from upstream.config import EncoderConfig


def widths(config: EncoderConfig) -> dict[str, list[int]]:
    """Units per layer: channels of each convolution, heads and inner units of each Transformer layer."""
    return {
        "convolution channels": [channels for channels, _, _ in config.conv_layers],
        "attention heads": [len(heads or ()) for heads in config.attention_heads],
        "feed-forward units": [inner or 0 for inner in config.ffn_dims],
    }


def what_is_left(output: Path, before: EncoderConfig, after: EncoderConfig, joint: Path) -> None:
    """OUTPUT/left.png: units per layer before and after pruning; expected sparsity by step, from JOINT/metrics.csv."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), layout="constrained")
    sides = zip(widths(before).items(), widths(after).values(), panels.flat, strict=False)
    for (name, whole), left, axes in sides:
        places = range(1, len(whole) + 1)
        axes.bar(places, whole, color="#e4e4e4", label="teacher")
        bars = axes.bar(places, left, color=COLOURS["student"], label="student")
        axes.bar_label(bars, fontsize="small", padding=1)
        share = sum(left) / max(1, sum(whole))
        axes.set(title=f"{name[0].upper()}{name[1:]}: {share:.0%} left", ylim=(0, 1.3 * max([*whole, 1])))
        axes.set_xlabel("convolution" if "channels" in name else "layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=2)
    steps = read_table(joint / "metrics.csv")
    axes = panels.flat[3]
    axes.plot(steps["step"], steps["sparsity"], color=COLOURS["student"], label="expected")
    axes.plot(steps["step"], steps["target"], color="#5f5f5f", linestyle="--", linewidth=1.2, label="target")
    axes.set(title="Sparsity", xlabel="optimiser step of the joint stage", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    axes.grid(alpha=0.25)
    save_figure(figure, output / "left.png")


def distance_curves(output: Path) -> None:
    """OUTPUT/distances.png: how far each layer of the student is from the teacher's, from distances.csv."""
    table = read_table(output / "distances.csv")
    titles = {"l2": "Relative L2 distance", "cosine": "1 - cosine similarity", "cka": "1 - linear CKA"}
    shown = [name for name in titles if name in table]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.4), layout="constrained", squeeze=False)
    labels = ["P" if layer == 0 else f"{layer:.0f}" for layer in table["teacher_layer"]]
    for name, axes in zip(shown, panels.flat, strict=True):
        axes.plot(range(len(labels)), table[name], "o-", color=COLOURS["student"], markersize=4)
        axes.set(title=titles[name], xlabel="teacher's layer")
        axes.set_ylim(0, 1.15 * max([value for value in table[name] if value > 0], default=1))  # NaN is not above 0
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(alpha=0.25)
    save_figure(figure, output / "distances.png")
