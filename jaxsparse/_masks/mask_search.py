"""The best mask of every leaf that a plan prunes, whatever its pattern."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxsparse._patterns import (
    NM,
    Pattern,
    PerOutput,
    as_bool,
    best_nm_mask,
    best_packed_nm_mask,
    best_row_mask,
    best_transposable_mask,
    best_unstructured_masks,
    expand_tiles,
    pack_mask,
    rank_by_magnitude,
    rank_by_value,
    rank_tiles,
    rank_within,
    wide_float,
)
from jaxsparse._plans import LeafPlan, counted_groups
from jaxsparse._sharding import (
    gather_groups,
    map_explicit_shards,
    reshard_like,
    reshard_to,
)
from jaxsparse._trees import require_values


_Mask = Bool[Array, "..."] | UInt8[Array, "..."]


def search_masks(
    scores: Mapping[str, Any],
    leaves: Sequence[LeafPlan],
    *,
    progress: Float[Array, ""] | None = None,
    within: Mapping[str, _Mask | None] | None = None,
    packed: bool = False,
    signed: bool = False,
) -> dict[str, _Mask]:
    """The best masks of leaves that a plan prunes, by path.

    Args:
      scores: the weights by path; or scores, which may be negative, where `signed`.
      leaves: the plans of the leaves.
      progress: the way from dense, 0, to the pattern, 1, which may be traced.
      within: masks, bool or packed; what they prune stays pruned.
      packed: whether to pack the masks along the group axis.
      signed: whether to rank by value instead of by magnitude.

    Raises:
      TypeError: a leaf has no values; or, `within` a mask, for integers of 32 bits or
        more: their order has no key below the lowest, which pruned weights would need.
    """
    for leaf in leaves:
        require_values(leaf.path, scores[leaf.path])
    masks: dict[str, _Mask] = {}
    kept_counts: dict[tuple[int, int], Array] = {}
    for group, total, kept in counted_groups(leaves):
        paths = [leaf.path for leaf in group]
        if within is not None:
            for leaf in group:
                _check_room(leaf, scores[leaf.path])
        if progress is not None:
            counts = total, kept
            if counts not in kept_counts:
                kept_counts[counts] = kept_count(total, kept, progress)
            kept = kept_counts[counts]
        search = _search_static if isinstance(kept, int) else _search_traced
        group_masks = search(
            [scores[path] for path in paths],
            kept,
            None if within is None else [within[path] for path in paths],
            tuple(_search_spec(leaf) for leaf in group),
            packed,
            signed,
        )
        masks |= dict(zip(paths, group_masks, strict=True))
    return {leaf.path: masks[leaf.path] for leaf in leaves}


class _SearchSpec(NamedTuple):
    """What a search needs of a leaf. Not its path: alike leaves share a program.

    Attributes:
      pattern: the leaf's pattern.
      axis: its group axis, along which masks are packed.
      output: its last output axis, None where it has none.
      rows: the axes along which there are separate outputs.
      tile: the sizes of what is pruned as a whole.
    """

    pattern: Pattern
    axis: int
    output: int | None
    rows: tuple[int, ...]
    tile: tuple[int, ...]


def _search_spec(leaf: LeafPlan) -> _SearchSpec:
    assert leaf.pattern is not None
    assert leaf.axis is not None
    output = leaf.output[-1] if leaf.output else None
    return _SearchSpec(leaf.pattern, leaf.axis, output, leaf.rows, leaf.tile)


def _search(scores, kept, within, specs, packed: bool, signed: bool) -> list[_Mask]:
    """The masks of leaves that share a threshold: usually of one leaf."""
    scores = [jnp.asarray(score) for score in scores]
    allowed = [None for _ in scores]
    if within is not None:
        allowed = [as_bool(w, s) for w, s in zip(within, scores, strict=True)]
    match specs[0].pattern:
        case NM(transposable=False):
            return [_search_nm(scores[0], kept, allowed[0], specs[0], packed, signed)]
        case NM():
            masks = [
                _search_transposable(scores[0], kept, allowed[0], specs[0], signed)
            ]
        case PerOutput():
            masks = [_search_per_output(scores[0], kept, allowed[0], specs[0], signed)]
        case _:
            masks = _search_tiles(scores, kept, allowed, specs, signed)
    if not packed:
        return masks
    return [pack_mask(mask, p.axis) for mask, p in zip(masks, specs, strict=True)]


def _search_nm(score, kept, allowed, spec: _SearchSpec, packed: bool, signed: bool):
    assert isinstance(spec.pattern, NM)
    ranked = rank_by_value(score) if signed else rank_by_magnitude(score)
    ranked = ranked if allowed is None else rank_within(ranked, allowed)
    search = best_packed_nm_mask if packed else best_nm_mask
    mask = search(ranked, kept, spec.pattern.m, spec.axis)
    if allowed is None:
        return mask
    # Where fewer are open than are to be kept, none is allowed.
    bits = pack_mask(allowed, spec.axis) if packed else allowed
    return mask & reshard_to(bits, mask)


def _search_transposable(score, kept, allowed, spec: _SearchSpec, signed: bool):
    assert isinstance(spec.pattern, NM)
    assert spec.output is not None
    score = score.astype(wide_float(score.dtype))  # some narrow floats have no infinity
    score = score if signed else jnp.abs(score)
    if allowed is not None:
        score = jnp.where(allowed, score, jnp.asarray(-jnp.inf, score.dtype))
    m, axes = spec.pattern.m, (spec.axis, spec.output)
    whole = gather_groups(gather_groups(score, m, axes[0]), m, axes[1])
    mask = best_transposable_mask(whole, kept, m, axes)
    mask = reshard_like(mask, score)
    return mask if allowed is None else mask & allowed


def _search_per_output(score, kept, allowed, spec: _SearchSpec, signed: bool):
    ranked = rank_by_value(score) if signed else rank_by_magnitude(score)
    ranked = ranked if allowed is None else rank_within(ranked, allowed)
    bits = ranked.bits
    for axis in set(range(bits.ndim)) - set(spec.rows):
        bits = gather_groups(bits, bits.shape[axis], axis)
    best = lambda x, n: best_row_mask(ranked._replace(bits=x), n, spec.rows)
    if isinstance(kept, int):
        mask = map_explicit_shards(lambda x: best(x, kept), bits)
    else:
        mask = map_explicit_shards(best, bits, kept)
    mask = reshard_like(mask, score)
    return mask if allowed is None else mask & allowed


def _search_tiles(scores, kept, allowed, specs: Sequence[_SearchSpec], signed: bool):
    dtype = _common_dtype([score.dtype for score in scores])
    ranked = [
        rank_tiles(score.astype(dtype), spec.tile, signed=signed, within=w)
        for score, spec, w in zip(scores, specs, allowed, strict=True)
    ]
    tiles = best_unstructured_masks(ranked, kept)
    masks = [
        reshard_like(expand_tiles(mask, spec.tile), score)
        for mask, spec, score in zip(tiles, specs, scores, strict=True)
    ]
    return [m if w is None else m & w for m, w in zip(masks, allowed, strict=True)]


# A static count has faster programs than a traced one.
_search_static = jax.jit(_search, static_argnums=(1, 3, 4, 5))
_search_traced = jax.jit(_search, static_argnums=(3, 4, 5))


def _common_dtype(dtypes: Sequence[jnp.dtype]) -> jnp.dtype:
    """A dtype in which scores of several leaves can be compared."""
    return dtypes[0] if len(set(dtypes)) == 1 else wide_float(*dtypes)


def _check_room(leaf: LeafPlan, score: ArrayLike) -> None:
    dtype = jnp.asarray(score).dtype
    if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize > 2:
        raise TypeError(
            f"leaf {leaf.path!r} of shape {leaf.shape} has dtype {dtype}, by which a "
            "mask cannot be refreshed: cast it to float32, or leave it dense by a rule"
        )


def kept_count(total: int, target: int, progress: Float[Array, ""]) -> Int[Array, ""]:
    """How many of `total` are kept when progress goes from all of them to `target`."""
    prunable, progress = total - target, jnp.asarray(progress, jnp.float32)
    pruned = jnp.round(jnp.clip(progress, 0, 1) * prunable).astype(jnp.int32)
    # A float32 holds whole numbers up to 2**24 only: at the end the target is exact.
    pruned = jnp.where(progress >= 1, prunable, jnp.minimum(pruned, prunable))
    return (total - pruned).astype(jnp.int32)
