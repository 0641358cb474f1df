"""The table and the picture of `finetune_linen.py`."""

import matplotlib


def print_table(results, patterns):
    """Prints the accuracy of each stage: the mean of the seeds, and each seed."""
    print(f"\n{'held-out accuracy (%)':24}   mean  by seed")
    pruned = [f"{p}, {x}" for p in patterns for x in ("one-shot", "fine-tuned")]
    for name in ("dense", "dense, trained as long", *pruned):
        by_seed = " ".join(f"{value:5.1f}" for value in results[name])
        print(f"{name:24}  {results[name].mean():5.1f}  {by_seed}")


def plot(results, patterns, path):
    """An arrow from one-shot to fine-tuned for each pattern; the dots are the seeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    dense = results["dense, trained as long"].mean()
    axes.axvline(dense, color="black", linestyle=":")
    axes.annotate(f"dense {dense:.1f} ", (dense, -0.6), ha="right", va="center")
    for row, pattern in enumerate(patterns):
        before, after = (results[f"{pattern}, {x}"] for x in ("one-shot", "fine-tuned"))
        ends = (after.mean(), row), (before.mean(), row)
        axes.annotate("", *ends, arrowprops={"arrowstyle": "->"})
        for values, color, note, align in (
            (before, "tab:red", (before.mean(), row - 0.3), "center"),
            (after, "tab:green", (dense + 1, row), "left"),
        ):
            axes.plot(values, [row] * len(values), "o", color=color, alpha=0.5)
            text = f"{values.mean():.1f}"
            axes.annotate(text, note, ha=align, va="center", color=color)
    axes.set(xlabel="held-out accuracy (%): pruned (red), then fine-tuned (green)")
    axes.set(yticks=range(len(patterns)), yticklabels=patterns, ylim=(2.6, -0.9))
    axes.set_xlim(right=105)
    axes.spines[["top", "right", "left"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
