"""Pictures of reports, masks and training runs, drawn by matplotlib.

Each function draws into the axes that it is given or makes a figure, and returns the
axes: `plot_leaves(report).figure.savefig("leaves.png")`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsparse._compressed import Compressed, decompress
from jaxsparse._patterns import (
    NM,
    as_bool,
    check_mask,
    is_zero,
)
from jaxsparse._plans import LeafPlan
from jaxsparse._reports import SparsityReport
from jaxsparse._trees import alike


def plot_leaves(report: SparsityReport, *, ax: Any = None) -> Any:
    """The sparsity of the masks and the magnitude that they keep, leaf by leaf.

    Equal layers of a model share a line, with a point for each. Leaves that stay dense
    are left out.

    Args:
      report: what `sparsity_report` returns.
      ax: axes of matplotlib to draw into; without, a figure is made.

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
            f"none of the {len(report.leaves)} leaves of this report is pruned: there "
            "is nothing to plot"
        )
    lines = alike({leaf.path: leaf for leaf in pruned})
    if ax is None:
        ax = _axes((6.4, 1.1 + 0.28 * len(lines)))
    kinds = (("magnitude_kept", "magnitude kept"), ("masked", "pruned"))
    for (name, label), color in zip(kinds, ("tab:blue", "tab:orange"), strict=True):
        places = [
            (100 * getattr(leaf, name), y)
            for y, leaves in enumerate(lines.values())
            for leaf in leaves
        ]
        ax.plot(*zip(*places, strict=True), "o", color=color, alpha=0.6, label=label)
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
    """A corner of a mask: kept weights dark, pruned ones white.

    Of a weight of more than two axes, the first place along each of the others.

    Args:
      weight: an array of one axis or more, or a compressed weight.
      mask: bool, of the weight's shape, or packed; the default is the weights that
        are not zero.
      leaf: the plan of the leaf, `plan[path]`: it says which two axes are shown, that
        of the groups and the last output axis, and groups of n:m are ruled off. The
        default is the last two axes.
      corner: how many places along each axis are shown at most.
      ax: axes of matplotlib to draw into; without, a figure is made.

    Returns:
      The axes.

    Raises:
      ValueError: a weight without axes, a corner below 1, a mask or a plan of another
        shape.
      TypeError: a mask that is neither bool nor uint8.
      ImportError: matplotlib is not installed.

    >>> ax = plot_mask(jnp.arange(128.0).reshape(16, 8) % 2)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('axis 1, 8 places', 'axis 0, 16 places')
    """
    w = decompress(weight) if isinstance(weight, Compressed) else jnp.asarray(weight)
    if w.ndim == 0 or corner < 1:
        raise ValueError(
            f"a weight of shape {w.shape} has no corner of {corner} places: give a "
            "weight with axes, and a corner from 1 on"
        )
    if leaf is not None and leaf.shape != w.shape:
        raise ValueError(
            f"the plan of leaf {leaf.path!r} is for shape {leaf.shape}, the weight has "
            f"shape {w.shape}: give the plan of this leaf"
        )
    shown = _shown_axes(w.ndim, leaf)
    part = np.asarray(_kept(w, mask))[
        tuple(slice(corner) if i in shown else 0 for i in range(w.ndim))
    ]
    part = np.atleast_2d(part)
    if ax is None:
        height, width = (max(0.15 * size, 1.0) for size in part.shape)
        ax = _axes((width + 1, height + 0.8))
    ax.imshow(part, cmap="Blues", vmin=0, vmax=1.2, interpolation="none")
    names = [f"axis {i}, {w.shape[i]} places" for i in shown]
    ax.set_xlabel(names[-1])
    if len(shown) == 2:
        ax.set_ylabel(names[0])
    else:
        ax.set_yticks([])
    for lines, size in zip((ax.axhline, ax.axvline), part.shape, strict=True):
        _draw_lines(lines, size, 1, color="white", linewidth=0.5)
    if leaf is not None and isinstance(leaf.pattern, NM):
        m, both = leaf.pattern.m, leaf.pattern.transposable
        for axis in (leaf.axis, *leaf.output[-1:] * both):
            down = len(shown) == 2 and axis == shown[0]
            lines, ticks = (ax.axhline, ax.yaxis) if down else (ax.axvline, ax.xaxis)
            size = part.shape[0 if down else 1]
            _draw_lines(lines, size, m, color="tab:orange", linewidth=1)
            ticks.set_ticks(range(0, size, m))
        ax.set_title(leaf.decision, fontsize="medium")
    return ax


def plot_flip_rate(
    history: Sequence[Mapping[str, Any]] | Mapping[str, ArrayLike],
    *,
    steps: ArrayLike | Sequence[int] | None = None,
    ax: Any = None,
) -> Any:
    """The flip rate over training: how many weights each change of masks moved.

    Args:
      history: what `metrics` returned step by step: a list of dicts, or the dict of
        arrays that `lax.scan` stacks them to.
      steps: the step of each; the default counts from 0.
      ax: axes of matplotlib to draw into; without, a figure is made.

    Returns:
      The axes.

    Raises:
      ValueError: no flip rate among the metrics, or steps of another number.
      ImportError: matplotlib is not installed.

    >>> history = [{"flip_rate": 0.0}, {"flip_rate": 0.2}, {"flip_rate": 0.1}]
    >>> ax = plot_flip_rate(history, steps=[0, 100, 200])
    >>> ax.get_ylabel()
    'weights flipped (%)'
    """
    columns = history if isinstance(history, Mapping) else _stacked(history)
    if "flip_rate" not in columns:
        raise ValueError(
            f"no flip rate among the metrics {sorted(columns)}: regrow_by_gradient, "
            "regrow_at_random and add_sr_ste_decay record it"
        )
    rates = np.asarray(columns["flip_rate"])
    steps = np.arange(len(rates)) if steps is None else np.asarray(steps)
    if rates.ndim != 1 or steps.shape != rates.shape:
        raise ValueError(
            f"flip rates of shape {rates.shape} at steps of shape {steps.shape}: give "
            "one step for each"
        )
    ax = _axes((6.4, 3.2)) if ax is None else ax
    # A rate is that of the last change and stands until the next one.
    ax.plot(steps, 100 * rates, drawstyle="steps-post")
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
    """Lines between places, after `every` so many."""
    for place in range(every, size, every):
        line(place - 0.5, **style)


def _shown_axes(ndim: int, leaf: LeafPlan | None) -> list[int]:
    """Which axes of a weight are shown: one or two, in its own order."""
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


def _stacked(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """One list for each name that every dict has."""
    common = set.intersection(*map(set, history)) if history else set()
    return {name: [float(one[name]) for one in history] for name in common}
