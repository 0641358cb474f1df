"""Means and variances of batch normalisation, measured anew on a pruned network."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxsparse._sharding import device_put_like
from jaxsparse._trees import PyTree, flatten, is_array


class _Moments(NamedTuple):
    """Statistics of all batches so far, by path.

    Attributes:
      weight: the number of samples.
      mean: the mean over samples of each batch's statistic.
      scatter: the weighted sum of its squared deviations from that mean.
    """

    weight: float
    mean: dict[str, Array]
    scatter: dict[str, Array]


def recalibrate_batch_stats(
    update: Callable[..., PyTree], batch_stats: PyTree, batches: Iterable[Any]
) -> PyTree:
    """Returns the means and variances that a network has on some batches.

    Batch normalisation evaluates a network with means and variances that were collected
    while it was trained. After pruning they are those of another network, and accuracy
    suffers more from them than from the weights that are gone. A hundred batches
    without labels are enough to renew them.

    Means are averaged over all samples; a variance is that of all samples together, the
    variance of the batches' means included: Wu & Johnson, "Rethinking 'Batch' in
    BatchNorm" (2021, arXiv:2105.07576). How much of the old statistics an update keeps,
    its momentum, makes no difference.

    Args:
      update: `update(batch_stats, *batch) -> batch_stats`: one forward pass in training
        mode, with the pruned weights, that returns the updated statistics. It is
        compiled once for each shape of batches.
      batch_stats: a tree with the statistics, whose values do not matter: Flax'
        collection `"batch_stats"`, NNX' `nnx.state(model, nnx.BatchStat)`, or a new
        `equinox.nn.State(model)` (a state that counts its updates, as Equinox', must be
        a new one). A mean and its variance are told by their names, which differ by
        `mean` and `var`, or they are a tuple of two.
      batches: batches of at least one sample; each is a tuple of arguments or the only
        one. Samples lie along the first axis of its first array.

    Returns:
      A tree like `batch_stats`, with the same dtypes and shardings.

    Raises:
      ValueError: there are no batches; `update` returns another tree; or a leaf is no
        moving average, such as the vector of a spectral norm.

    >>> def update(stats, x):  # as a layer does, with a momentum of 0.9
    ...     average = lambda old, new: 0.9 * old + 0.1 * new
    ...     return {
    ...         "mean": average(stats["mean"], x.mean(0)),
    ...         "var": average(stats["var"], x.var(0)),
    ...     }
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
    >>> stale = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    >>> print(recalibrate_batch_stats(update, stale, batches))
    {'mean': Array([4.], dtype=float32), 'var': Array([5.], dtype=float32)}
    """
    leaves, structure = flatten(batch_stats)
    start = {path: leaf for path, leaf in leaves.items() if _is_float(leaf)}

    @jax.jit
    def updated(value: ArrayLike, *batch: Any) -> PyTree:
        full = {
            path: jnp.full_like(x, value, jnp.promote_types(x.dtype, jnp.float32))
            for path, x in start.items()
        }
        return update(structure.unflatten({**leaves, **full}.values()), *batch)

    momentum, moments, after = None, None, {}
    # Large beside most statistics, so that their rounding does not hide the momentum.
    large = 2.0**14
    for batch in batches:
        args = batch if type(batch) is tuple else (batch,)
        after = _flat(updated(0.0, *args), leaves)
        if momentum is None:
            once, twice = (_flat(updated(k * large, *args), leaves) for k in (1, 2))
            momentum = {
                p: _momentum(p, after[p], once[p], twice[p], large) for p in start
            }
        of_batch = {p: after[p] / (1 - momentum[p]) for p in start}
        moments = _add(moments, of_batch, _samples(args))
    if moments is None or momentum is None:
        raise ValueError("there are no batches: pass at least one")

    means = dict(moments.mean)
    for path in start:
        if variance := _variance_of(path, start):
            means[variance] += moments.scatter[path] / moments.weight
    if _counts(leaves, after):  # its evaluation divides by 1 - momentum
        means = {path: x * (1 - momentum[path]) for path, x in means.items()}
    renewed = {
        path: device_put_like(x.astype(start[path].dtype), start[path])
        for path, x in means.items()
    }
    return structure.unflatten({**after, **renewed}.values())


def _is_float(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _samples(args: tuple[Any, ...]) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(args) if is_array(x)]
    return shapes[0][0] if shapes and shapes[0] else 1


def _flat(tree: PyTree, leaves: dict[str, Any]) -> dict[str, Any]:
    after = flatten(tree).by_path
    if after.keys() != leaves.keys():
        odd = sorted(after.keys() ^ leaves.keys())
        raise ValueError(
            f"update must return a tree like batch_stats, but {odd[0]!r} is in one of "
            "them only: return the updated statistics alone"
        )
    return {path: after[path] for path in leaves}


def _momentum(
    path: str, at_zero: Array, once: Array, twice: Array, large: float
) -> float:
    """Returns the share of the old value, which was 0, `large` and `2 * large`."""
    share, again = (once - at_zero) / large, (twice - once) / large
    if bool((share == 1).all() and (at_zero == 0).all()):
        raise ValueError(
            f"leaf {path!r} of shape {at_zero.shape} is not updated: run the model in "
            "training mode, such as with use_running_average=False, and return the "
            "statistics that it updated"
        )
    rounding = 1e-5 * (1 + jnp.abs(at_zero) / large)
    if not bool((jnp.abs(share - again) <= rounding).all() and (share < 1).all()):
        raise ValueError(
            f"leaf {path!r} of shape {at_zero.shape} is no moving average of a "
            "statistic of the batch: pass the means and variances alone, and keep "
            "other state out"
        )
    return float(np.median(share))  # one number for a layer


def _add(
    moments: _Moments | None, of_batch: dict[str, Array], samples: int
) -> _Moments:
    """Adds a batch by Welford's update, which does not cancel."""
    if moments is None:
        zeros = {path: jnp.zeros_like(x) for path, x in of_batch.items()}
        return _Moments(samples, of_batch, zeros)
    weight = moments.weight + samples
    mean, scatter = {}, {}
    for path, x in of_batch.items():
        change = x - moments.mean[path]
        mean[path] = moments.mean[path] + change * (samples / weight)
        scatter[path] = moments.scatter[path] + samples * change * (x - mean[path])
    return _Moments(weight, mean, scatter)


def _variance_of(path: str, paths: Iterable[str]) -> str | None:
    """The path of the variance that belongs to a mean; None for another leaf."""
    names = [path.replace("mean", "var")]
    if path == "0" or path.endswith("/0"):
        names.append(f"{path[:-1]}1")
    return next((x for x in names if x != path and x in paths), None)


def _counts(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the state counts its updates, to correct the bias of the first ones."""
    return any(
        is_array(x)
        and jnp.issubdtype(x.dtype, jnp.integer)
        and bool(jnp.any(jnp.asarray(after[path]) != x))
        for path, x in before.items()
    )
