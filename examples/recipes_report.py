"""The command line, the table and the picture of `recipes.py`."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import t as student


def arguments(description, looks):
    """What was asked for on the command line; steps in whole looks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k"], default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--figure", type=Path, default=Path("recipes.png"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for tests")
    args = parser.parse_args()
    if args.smoke:
        args.seeds, args.steps = 2, looks
    args.steps -= args.steps % looks
    return args


def interval(values):
    """The mean, and half of its 95 % interval by Student's t."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values), student.ppf(0.975, len(values) - 1) * error


def print_table(accuracies):
    """Each recipe's final accuracy, and its difference to dense, seed by seed."""
    dense = accuracies["dense"]
    print(f"\n{'held-out accuracy (%)':24}   mean  minus dense (95 %)  by seed")
    for name, column in accuracies.items():
        by_seed = " ".join(f"{value:5.1f}" for value in column)
        against = " " * 19
        if name != "dense" and len(column) > 1:
            mean, half = interval(column - dense)
            against = f"{mean:+8.2f} +- {half:4.2f}".ljust(19)
        print(f"{name:24} {column.mean():6.2f}  {against} {by_seed}")


def plot(results, steps, path):
    """Accuracy and flip rate over the steps: means over the seeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(6.4, 6.4), sharex=True, layout="constrained"
    )
    for name, (accuracy, rate) in results.items():
        style = "--" if "transposable" in name else "-"  # it lies on another
        (line,) = above.plot(steps, accuracy.mean(0), style, label=name)
        if name != "dense":
            below.plot(steps, rate.mean(0), style, color=line.get_color())
    last = min(accuracy[:, -1].mean() for accuracy, _ in results.values())
    above.set(ylabel="held-out accuracy (%)")
    above.set_ylim(last - 5, last + 5)
    above.legend(frameon=False, loc="lower right")
    below.set(xlabel="step", ylabel=f"weights flipped in {steps[0]} steps (%)")
    below.set_yscale("symlog", linthresh=0.1)
    below.set_ylim(0, 100)
    figure.savefig(path, dpi=100)
