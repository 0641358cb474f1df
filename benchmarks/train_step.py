"""Training steps with 2:4 weights on sparse tensor cores, against dense ones.

    python -m benchmarks.train_step [--rounds N] [--weights 4096x4096 ...]
        [--tokens 2048 ...] [--pieces 8192] [--blocks 8192]
        [--squared-relu 8192] [--mesh fsdp] [--torch] [--quick]

Weights are float32, cast or compressed to bfloat16 in every step, and 2:4 along both
axes. A row named by a shape is a layer: its product and both gradients. "SwiGLU" is a
feed-forward block of Llama 3 8B's sizes, forward and backward; "block" has attention,
too, and AdamW. "dense" trains weights without masks; "masked" multiplies their zeros;
"accelerated" does not. GiB are of arguments, results and temporaries. "squared ReLU" is
a feed-forward block whose activations are zero at 90 %: "activations" compresses these
alone, "both" also the weights. The pieces are each timed alone. `--mesh` runs only
layers and SwiGLU, on all devices: with "fsdp" each has a part of every weight and of
the tokens, with "tensor" a part of the outputs, and of the inputs of the last layer;
tokens are of all devices, GiB of one. `--torch` adds
PyTorch's products, dense and by cuSPARSELt. `--quick` takes seconds on a CPU.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse as js
from benchmarks import llama
from benchmarks.timing import machine, medians, print_rows
from benchmarks.train_step_pieces import Implementation, piece_rows, torch_rows


PATTERN = js.NM(2, 4, transposable=True)
SHAPES = ((4096, 4096), (4096, 14336), (8192, 8192))
TOKENS = (2048, 8192, 32768)
SEQUENCE = 2048  # tokens that attend to one another


Loss = Callable[..., tuple[jax.Array, jax.Array]]


class Program(NamedTuple):
    """A compiled step, and the GiB that it takes."""

    run: Callable[[], Any]
    peak: float


class Work(NamedTuple):
    """What is trained.

    The loss of float32 parameters, activations and the cotangent of the result; it
    returns the result beside, or the forward product would not be needed.
    """

    name: str
    params: dict[str, jax.Array]
    loss: Loss
    x: jax.Array
    cotangent: jax.Array
    optimizer: optax.GradientTransformation | None = None
    activations: bool = False


def rows(works: Iterator[Work], rounds: int, how: Implementation) -> Iterator[dict]:
    """The time of each work's step in milliseconds, and how many times as fast."""
    for work in works:
        steps = programs(work, how)
        times, _ = medians({name: step.run for name, step in steps.items()}, rounds)
        fastest = {name: times["dense"] / times[name] for name in steps}
        del fastest["dense"]
        yield {
            "work": work.name,
            "tokens": work.x.size // work.x.shape[-1],
            "dense ms": times["dense"] * 1e3,
            **fastest,
            "dense GiB": steps["dense"].peak,
            "to it": [*steps.values()][-1].peak / steps["dense"].peak,
        }


def programs(work: Work, how: Implementation) -> dict[str, Program]:
    """The compiled steps of dense and of masked weights, by name."""
    args = work.x, work.cotangent
    plan = js.plan_sparsity(
        work.params, PATTERN, fn=work.loss, args=args, dense_head=False
    )
    masks = js.create_masks(work.params, plan)
    masked = js.mask_params(work.params, masks)
    fast = js.accelerate(work.loss, plan, implementation=how)
    if work.optimizer is None:
        steps = {
            "dense": compile_step(work.loss, None, work.params, args),
            "accelerated": compile_step(fast, None, masked, args),
        }
        if work.activations:
            accelerate = partial(js.accelerate, activations=True, implementation=how)
            only, both = accelerate(work.loss, None), accelerate(work.loss, plan)
            steps["activations"] = compile_step(only, None, work.params, args)
            steps["both"] = compile_step(both, None, masked, args)
        return steps
    tx = js.wrap_optimizer(work.optimizer, masks=masks)
    return {
        "dense": compile_step(work.loss, work.optimizer, work.params, args),
        "masked": compile_step(work.loss, tx, masked, args),
        "accelerated": compile_step(fast, tx, masked, args),
    }


def compile_step(
    loss: Loss,
    tx: optax.GradientTransformation | None,
    params: Any,
    args: tuple[Any, ...],
) -> Program:
    """Compiles a step: gradients of parameters and activations, and an update."""
    gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)

    def update(carry: Any, args: tuple[Any, ...]) -> Any:
        params, state = carry
        (by_params, by_x), y = gradients(params, *args)
        updates, state = tx.update(by_params, state, params)  # pyright: ignore
        return (optax.apply_updates(params, updates), state), (by_x, y)

    if tx is None:
        placed = jax.tree.map(lambda x: x.sharding, (params, args[0]))
        jitted = jax.jit(gradients, out_shardings=(placed, None))
        compiled = jitted.lower(params, *args).compile()
        return Program(partial(compiled, params, *args), _peak(compiled))
    carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
    compiled = jax.jit(update, donate_argnums=0).lower(carry, args).compile()
    kept = [carry]

    def run() -> Any:
        kept[0], results = compiled(kept[0], args)
        return results

    return Program(run, _peak(compiled))


def _peak(compiled: Any) -> float:
    memory = compiled.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    size += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return size / 2**30


def linear(shape: tuple[int, int], tokens: int) -> Work:
    """One layer without a bias."""

    def loss(params, x, g):
        y = x @ params["kernel"].astype(x.dtype)
        return jnp.vdot(y, g), y

    return _work("x".join(map(str, shape)), loss, {"kernel": shape}, tokens, shape[1])


def swiglu(sizes: llama.Sizes, tokens: int) -> Work:
    """The feed-forward block."""

    def loss(params, x, g):
        narrow = {name: w.astype(x.dtype) for name, w in params.items()}
        y = llama.gate_up(narrow, x) @ narrow["down"]
        return jnp.vdot(y, g), y

    shapes = {"gate": (sizes.width, sizes.hidden), "up": (sizes.width, sizes.hidden)}
    shapes["down"] = sizes.hidden, sizes.width
    return _work("SwiGLU", loss, shapes, tokens, sizes.width)


def squared_relu(sizes: llama.Sizes, tokens: int) -> Work:
    """A feed-forward block with activations that are zero at 90 %."""

    def loss(params, x, g):
        narrow = {name: w.astype(x.dtype) for name, w in params.items()}
        y = jax.nn.relu(x @ narrow["up"]) ** 2 @ narrow["down"]
        return jnp.vdot(y, g), y

    shapes = {"up": (sizes.width, sizes.hidden), "down": (sizes.hidden, sizes.width)}
    work = _work("squared ReLU", loss, shapes, tokens, sizes.width)
    # A mean of 1/4 in activations and a small one in weights make 90 % negative.
    shift = jax.scipy.stats.norm.ppf(0.9) * 17**0.5 / sizes.width
    params = work.params | {"up": work.params["up"] - shift}
    return work._replace(params=params, x=work.x + 0.25, activations=True)


def block(sizes: llama.Sizes, tokens: int, sequence: int) -> Work:
    """A block of a decoder with AdamW."""
    turns = llama.rotations(jnp.arange(sequence), sizes.head_size)

    def loss(params, x, g):
        narrow = {name: w.astype(x.dtype) for name, w in params.items()}
        y, _ = llama.block(narrow, x, turns, sizes.head_size, llama.mix_causal)
        return jnp.vdot(y, g), y

    params = llama.random_params(
        jax.random.key(0), sizes._replace(layers=1), jnp.float32, unrolled=True
    )["layers"][0]
    x, g = _rows((tokens // sequence, sequence, sizes.width))
    return Work("block", params, loss, x, g, optax.adamw(1e-4))


def on_mesh(work: Work, how: str) -> Work:
    """The same work on all devices, as `--mesh` says."""
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("devices",), axis_types=(AxisType.Auto,))

    def place(x: jax.Array, *spec: str | None) -> jax.Array:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    inputs, outputs = ("devices",), (None, "devices")
    by_inputs = work.params.keys() if how == "fsdp" else {"down"}
    params = {
        name: place(w, *(inputs if name in by_inputs else outputs))
        for name, w in work.params.items()
    }
    rows = inputs if how == "fsdp" else ()
    x, cotangent = place(work.x, *rows), place(work.cotangent, *rows)
    return work._replace(params=params, x=x, cotangent=cotangent)


def _work(
    name: str,
    loss: Loss,
    shapes: Mapping[str, tuple[int, int]],
    tokens: int,
    out: int,
) -> Work:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape) * shape[0] ** -0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    width = next(iter(shapes.values()))[0]
    (x,), (g,) = _rows((tokens, width), 1), _rows((tokens, out), 1)
    return Work(name, params, loss, x, g)


def _rows(shape: tuple[int, ...], count: int = 2) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(shape[-1]), count)
    return [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    weight = lambda text: tuple(map(int, text.split("x")))
    parser.add_argument("--weights", type=weight, nargs="*", default=SHAPES)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--pieces", type=int, nargs="*", default=[8192])
    parser.add_argument("--blocks", type=int, nargs="*", default=[8192])
    parser.add_argument("--mesh", choices=["fsdp", "tensor"], help="all devices")
    parser.add_argument("--squared-relu", type=int, nargs="*", default=[8192])
    parser.add_argument("--torch", action="store_true", help="PyTorch's products, too")
    parser.add_argument("--quick", action="store_true", help="seconds, on a CPU")
    args = parser.parse_args()
    sizes, sequence = llama.Sizes(), SEQUENCE
    how: Implementation = "xla" if args.quick else "cuda"
    if args.quick:
        sizes = llama.Sizes(1, 64, 128, 4, 2, 16, 256)
        sequence = 16
        args.weights, args.tokens, args.rounds = [(64, 128)], [32], 2
        args.pieces = args.blocks = args.squared_relu = [32]
    print(machine())
    layers = (linear(w, n) for w in args.weights for n in args.tokens)
    if args.mesh:
        works = chain(layers, (swiglu(sizes, tokens) for tokens in args.blocks))
        on_all = (on_mesh(work, args.mesh) for work in works)
        print_rows(rows(on_all, args.rounds, how))
        return
    print_rows(rows(layers, args.rounds, how))
    for tokens in args.blocks:
        print()
        works = (block(sizes, tokens, sequence), swiglu(sizes, tokens))
        print_rows(rows(iter(works), args.rounds, how))
    for tokens in args.squared_relu:
        print()
        print_rows(rows(iter([squared_relu(sizes, tokens)]), args.rounds, how))
    for tokens in args.pieces:
        print()
        print_rows(piece_rows(args.weights, tokens, args.rounds, how))
        if args.torch:
            print_rows(torch_rows(args.weights, tokens, args.rounds))


if __name__ == "__main__":
    main()
