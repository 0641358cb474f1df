"""Plots of reports, masks and training runs, drawn by matplotlib.

Each function draws into the given axes, or creates a figure, and returns the axes:
`plot_leaves(report).figure.savefig("leaves.png")`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsparse._compressed import Compressed, decompress
from jaxsparse._patterns import NM, as_bool, check_mask, is_zero
from jaxsparse._plans import LeafPlan
from jaxsparse._reports import SparsityReport
from jaxsparse._trees import alike


def plot_leaves(report: SparsityReport, *, ax: Any = None) -> Any:
    """Plots the sparsity of each leaf's mask and the magnitude that it keeps.

    Equal layers of a model share a line, with a point for each. Dense leaves are
    omitted.

    Args:
      report: the result of `sparsity_report`.
      ax: matplotlib axes to draw into; by default a figure is created.

    Returns:
      The axes.

    Raises:
      ValueError: no leaf of the report is pruned.
      ImportError: matplotlib is not installed.

    >>> from jaxsparse import sparsity_report
    >>> params = {"kernel": jnp.arange(128.0).reshape(16, 8), "bias": jnp.ones(8)}
    >>> ax = plot_leaves(sparsity_report(params, "2:4"))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['kernel']
    """
    pruned = [leaf for leaf in report if leaf.magnitude_kept is not None]
    if not pruned:
        raise ValueError(
            f"none of the {len(report.leaves)} leaves of this report is pruned: pass a "
            "plan or masks that prune some to sparsity_report"
        )
    lines = alike({leaf.path: leaf for leaf in pruned})
    if ax is None:
        width = max(6.4, 3.5 + 0.09 * max(map(len, lines)))  # room beside the paths
        ax = _axes((width, 1.1 + 0.28 * len(lines)))
    kinds = (("magnitude_kept", "magnitude kept"), ("masked", "pruned"))
    for (name, label), color in zip(kinds, ("tab:blue", "tab:orange"), strict=True):
        points = [
            (100 * getattr(leaf, name), y)
            for y, leaves in enumerate(lines.values())
            for leaf in leaves
        ]
        ax.plot(*zip(*points, strict=True), "o", color=color, alpha=0.6, label=label)
    ax.set_yticks(range(len(lines)), list(lines))
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.set_xlim(-2, 102)
    ax.set_xlabel("%")
    ax.grid(axis="y", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(left=False)
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderpad=0
    )
    return ax


def plot_mask(
    weight: ArrayLike | Compressed,
    mask: ArrayLike | None = None,
    *,
    leaf: LeafPlan | None = None,
    corner: int = 32,
    ax: Any = None,
) -> Any:
    """Plots a corner of a mask: kept weights dark, pruned ones white.

    A weight of more than two axes is shown at the first index of all others.

    Args:
      weight: an array with at least one axis, or a compressed weight.
      mask: bool, of the weight's shape, or packed; by default the non-zero weights.
      leaf: the plan of the leaf, `plan[path]`. If given, the two axes shown are the
        group axis and the last output axis, with lines between n:m groups; by default
        they are the last two.
      corner: the largest number of weights shown along each axis.
      ax: matplotlib axes to draw into; by default a figure is created.

    Returns:
      The axes.

    Raises:
      ValueError: a weight without axes, a corner below 1, a mask or a plan of another
        shape.
      TypeError: a mask that is neither bool nor uint8.
      ImportError: matplotlib is not installed.

    >>> ax = plot_mask(jnp.arange(128.0).reshape(16, 8) % 2)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('axis 1, size 8', 'axis 0, size 16')
    """
    w = decompress(weight) if isinstance(weight, Compressed) else jnp.asarray(weight)
    if w.ndim == 0 or corner < 1:
        raise ValueError(
            f"can't plot a corner of {corner} weights of a weight of shape {w.shape}: "
            "it must have an axis, and corner must be at least 1"
        )
    if leaf is not None and leaf.shape != w.shape:
        raise ValueError(
            f"the plan of leaf {leaf.path!r} is for shape {leaf.shape}, but the weight "
            f"has shape {w.shape}: pass the plan of this leaf"
        )
    axes = _visible_axes(w.ndim, leaf)
    slices = tuple(slice(corner) if i in axes else 0 for i in range(w.ndim))
    part = np.atleast_2d(np.asarray(_kept(w, mask))[slices])
    if ax is None:
        height, width = (max(0.15 * size, 1.0) for size in part.shape)
        ax = _axes((width + 1, height + 0.8))
    ax.imshow(part, cmap="Blues", vmin=0, vmax=1.2, interpolation="none")
    names = [f"axis {i}, size {w.shape[i]}" for i in axes]
    ax.set_xlabel(names[-1])
    if len(axes) == 2:
        ax.set_ylabel(names[0])
    else:
        ax.set_yticks([])
    for lines, size in zip((ax.axhline, ax.axvline), part.shape, strict=True):
        _draw_lines(lines, size, 1, color="white", linewidth=0.5)
    if leaf is not None and isinstance(leaf.pattern, NM):
        _draw_groups(ax, part.shape, axes, leaf, leaf.pattern)
    return ax


def plot_flip_rate(
    history: Sequence[Mapping[str, Any]] | Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | Sequence[int] | None = None,
    ax: Any = None,
) -> Any:
    """Plots the share of weights that each change of masks pruned or regrew.

    Args:
      history: the results of `metrics` step by step: a list of dicts, or the dict of
        arrays that `lax.scan` stacks them to.
      steps: the step of each result; by default they count from 0.
      ax: matplotlib axes to draw into; by default a figure is created.

    Returns:
      The axes.

    Raises:
      ValueError: there is no flip rate among the metrics, or not one step for each.
      ImportError: matplotlib is not installed.

    >>> history = [{"flip_rate": 0.0}, {"flip_rate": 0.2}, {"flip_rate": 0.1}]
    >>> ax = plot_flip_rate(history, steps=[0, 100, 200])
    >>> ax.get_ylabel()
    'weights flipped (%)'
    """
    series = history if isinstance(history, Mapping) else _stack(history)
    if "flip_rate" not in series:
        raise ValueError(
            f"no flip rate among the metrics {sorted(series)}: regrow_by_gradient, "
            "regrow_at_random and add_sr_ste_decay record it"
        )
    rates = np.asarray(series["flip_rate"])
    steps = np.arange(len(rates)) if steps is None else np.asarray(steps)
    if rates.ndim != 1 or steps.shape != rates.shape:
        raise ValueError(
            f"flip rates of shape {rates.shape} do not fit steps of shape "
            f"{steps.shape}: pass one step for each"
        )
    ax = _axes((6.4, 3.2)) if ax is None else ax
    # A rate is that of the last change of masks, and holds until the next one.
    marker = "o" if len(rates) == 1 else None
    ax.plot(steps, 100 * rates, drawstyle="steps-post", marker=marker)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step")
    ax.set_ylabel("weights flipped (%)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _axes(size: tuple[float, float]) -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise ImportError("plots need: python -m pip install matplotlib") from None
    return plt.subplots(figsize=size, layout="constrained")[1]


def _draw_lines(line: Callable[..., Any], size: int, every: int, **style: Any) -> None:
    """Draws a line after every `every` of `size` weights."""
    for index in range(every, size, every):
        line(index - 0.5, **style)


def _draw_groups(
    ax: Any, size: Sequence[int], axes: Sequence[int], leaf: LeafPlan, pattern: NM
) -> None:
    """Draws lines and ticks between n:m groups, and the plan as a title."""
    group_axes = [leaf.axis]
    if pattern.transposable:
        group_axes.append(leaf.output[-1])
    for axis in group_axes:
        if len(axes) == 2 and axis == axes[0]:
            lines, ticks, length = ax.axhline, ax.yaxis, size[0]
        else:
            lines, ticks, length = ax.axvline, ax.xaxis, size[1]
        _draw_lines(lines, length, pattern.m, color="tab:orange", linewidth=1)
        ticks.set_ticks(range(0, length, pattern.m))
    ax.set_title(leaf.decision, fontsize="medium")


def _visible_axes(ndim: int, leaf: LeafPlan | None) -> list[int]:
    """Returns the one or two axes of a weight that are shown, in its own order."""
    if leaf is None or leaf.axis is None:
        return list(range(ndim))[-2:]
    others = leaf.output or tuple(i for i in range(ndim) if i != leaf.axis)
    return sorted({leaf.axis, *others[-1:]})


def _kept(weight: jax.Array, mask: ArrayLike | None) -> jax.Array:
    if mask is None:
        return ~is_zero(weight)
    mask = jnp.asarray(mask)
    check_mask(mask, weight.shape, name="a weight")
    return as_bool(mask, weight)


def _stack(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns a list for each name that every dict has."""
    names = set.intersection(*map(set, history)) if history else set()
    return {name: [float(metrics[name]) for metrics in history] for name in names}
