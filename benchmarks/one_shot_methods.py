"""SmolLM2-135M, texts to calibrate and to evaluate it on, and ways to prune it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from decoder import Decoder, loss, perplexity
from flax import nnx
from permute_language_model import at_random, permutable
from real_data import load_bible, load_reference
from smollm import load_smollm, load_tokenizer, read_config, spread, whole_pieces

import jaxsparse as js


LENGTH = 512  # tokens of a piece
RANDOM = 3  # permutations
MOMENTS, PERMUTATION = "second moments", "permutation"


class Way(NamedTuple):
    """A way to prune.

    Attributes:
      run: makes pruned parameters.
      shared: what it shares with others, by name, which is computed only once.
    """

    run: Callable[[], Any]
    shared: tuple[str, ...] = ()


class Texts(NamedTuple):
    """Pieces of 512 tokens, by text: the first halves, and parts to evaluate on."""

    first: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]


class Model(NamedTuple):
    """A dense model.

    Attributes:
      forward: `(params, tokens)` to logits, block after block.
      dense: its parameters.
      stages: a boundary for each block.
      mean_loss: `(params, tokens)` to the mean loss, compiled once: in a loop.
    """

    forward: Callable[..., jax.Array]
    dense: Any
    stages: list[str]
    mean_loss: Callable[..., jax.Array]


def load_texts(tokens: int, files: Sequence[Path]) -> Texts:
    """Texts, with at least so many tokens of each to evaluate on."""
    pieces = partial(whole_pieces, load_tokenizer(), length=LENGTH)
    halves = {"KJV": load_bible(), "CPython": load_reference()}
    count = -(-tokens // (LENGTH - 1))
    second = {name: text for name, (_, text) in halves.items()}
    second |= {file.stem: file.read_text("utf-8") for file in files}
    return Texts(
        {name: pieces(text) for name, (text, _) in halves.items()},
        {name: spread(pieces(text), count) for name, text in second.items()},
    )


def draw_batches(
    first: dict[str, np.ndarray], names: Sequence[str], pieces: int, draw: int
) -> list[np.ndarray]:
    """A draw of pieces of the named texts, mixed, in at least four batches."""
    rng = np.random.default_rng(draw)
    each = pieces // len(names)
    chosen = [rng.permutation(first[name])[:each] for name in names]
    mixed = rng.permutation(np.concatenate(chosen))
    size = min(8, len(mixed) // 4)
    return np.array_split(mixed, len(mixed) // size)


def load_model(layers: int | None) -> Model:
    """The pretrained model, or its first blocks."""
    model = load_smollm()
    config = replace(read_config(), layers=layers or read_config().layers)
    blocks: Any = model.blocks
    model.blocks = nnx.List([blocks[i] for i in range(config.layers)])
    graph, dense = nnx.split(model, nnx.Param)
    loop = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), stacked=True))
    loop_graph, _ = nnx.split(loop, nnx.Param)

    @jax.jit
    def mean_loss(params, tokens):
        blocks = [params["blocks"][i] for i in range(config.layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        params = nnx.State({**params, "blocks": stacked})
        return loss(nnx.merge(loop_graph, params), tokens)

    return Model(
        lambda params, tokens: nnx.merge(graph, params)(tokens),
        dense,
        [f"blocks/{i}/.*" for i in range(config.layers)],
        mean_loss,
    )


def evaluate(model: Model, params: Any, texts: dict[str, np.ndarray]) -> dict:
    """The perplexity of each text; small batches, so that logits take little memory."""
    return {
        name: perplexity(model.mean_loss, params, pieces, batch=5)
        for name, pieces in texts.items()
    }


class Shared(NamedTuple):
    """What ways to prune share, each computed when it is called first."""

    moments: Callable[[], dict[str, js.LeafStatistics]]
    permutation: Callable[[], js.PermutationResult]


def share(model: Model, plan: js.Plan, batches: list[np.ndarray]) -> Shared:
    """The second moments, and the permutation that Wanda's scores choose."""
    forward, dense, _, _ = model

    @cache
    def moments() -> dict[str, js.LeafStatistics]:
        return js.collect_statistics(forward, dense, batches, plan=plan)

    @cache
    def permutation() -> js.PermutationResult:
        return js.permute_channels(
            dense,
            plan,
            forward,
            (batches[0][:1],),
            scores=js.wanda_scores(dense, moments()),
            groups=permutable(forward, dense, batches[0], False),
        )

    return Shared(moments, permutation)


def methods(
    model: Model, plan: js.Plan, batches: list[np.ndarray], shared: Shared
) -> dict[str, Way]:
    """All layers at once, or block by block."""
    forward, dense, _, _ = model

    def held_out() -> dict[str, js.LeafStatistics]:
        return js.collect_statistics(forward, dense, batches, plan=plan, held_out=0.25)

    def at_once(searcher: Any) -> Way:
        return Way(lambda: searcher.search(dense, shared.moments()).params, (MOMENTS,))

    refined = js.SparseGPTSearcher(plan, refine=10)
    auto = js.SparseGPTSearcher(plan, shrinkage="auto")
    ordered = partial(in_order, model, batches)
    return {
        "Wanda": at_once(js.WandaSearcher(plan)),
        "SparseGPT, shrinkage 0": at_once(js.SparseGPTSearcher(plan, shrinkage=0.0)),
        "SparseGPT": at_once(js.SparseGPTSearcher(plan)),
        "SparseGPT, shrinkage auto": Way(lambda: auto.search(dense, held_out()).params),
        "SparseGPT, refined": at_once(refined),
        "ADMM": at_once(js.ADMMSearcher(plan)),
        "SparseGPT, in order": Way(partial(ordered, js.SparseGPTSearcher(plan))),
        "SparseGPT, in order, refined": Way(partial(ordered, refined)),
        "SparseGPT, in order, reconstructed": Way(
            partial(
                ordered, js.SparseGPTSearcher(plan), reconstruct=js.Reconstruction()
            )
        ),
    }


def in_order(
    model: Model,
    batches: list[np.ndarray],
    searcher: js.SparseGPTSearcher,
    params: Any = None,
    **options: Any,
) -> Any:
    """Prunes the dense model, or other parameters, block by block."""
    params = model.dense if params is None else params
    return js.prune_sequentially(
        model.forward, params, batches, searcher, boundaries=model.stages, **options
    ).params


def permuted_methods(
    model: Model, plan: js.Plan, batches: list[np.ndarray], shared: Shared
) -> dict[str, Way]:
    """Permuted first, or at random: the control, with the same channels."""

    def order(seed: int | None) -> js.PermutationResult:
        found = shared.permutation()
        return found if seed is None else at_random(found, model.dense, seed)

    def wanda(seed: int | None) -> Any:
        found = order(seed)
        statistics = found.permute(shared.moments())
        return js.WandaSearcher(plan).search(found.params, statistics).params

    def sparsegpt(seed: int | None) -> Any:
        searcher = js.SparseGPTSearcher(plan)
        return in_order(model, batches, searcher, order(seed).params)

    names = {None: "permuted"} | {i: f"at random {i + 1}" for i in range(RANDOM)}
    return {
        f"{method}, {name}": Way(partial(run, seed), (MOMENTS, PERMUTATION))
        for method, run in (("Wanda", wanda), ("SparseGPT, in order", sparsegpt))
        for seed, name in names.items()
    }


def ways(
    model: Model, pattern: str, batches: list[np.ndarray], names: Sequence[str]
) -> dict[str, Way]:
    """The named ways to prune, after what they share."""
    plan = js.plan_sparsity(model.dense, pattern, fn=model.forward, args=(batches[0],))
    shared = share(model, plan, batches)
    found = methods(model, plan, batches, shared)
    found |= permuted_methods(model, plan, batches, shared)
    needed = {need for name in names for need in found[name].shared}
    steps = {MOMENTS: shared.moments, PERMUTATION: shared.permutation}
    first = {name: Way(run) for name, run in steps.items() if name in needed}
    return first | {name: found[name] for name in names}
