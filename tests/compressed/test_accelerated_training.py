"""Training on compressed weights: made once a step, and the same steps elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsparse as js
from tests.compressed.accelerated import calls, planned, primitives, whole
from tests.sharding.eight_devices import run_on_eight_devices


def stack(params, x, *, remat=None, dtype="float32"):
    """Three layers in a scan, of whole numbers."""

    def layer(h, w):
        return jnp.clip(h @ w.astype(dtype), -2, 2), None

    if remat is not None:
        layer = jax.checkpoint(layer, **remat)
    h, _ = lax.scan(layer, x.astype(dtype), params["w"])
    return jnp.sum(h.astype(jnp.float32) * jnp.arange(h.shape[-1]))


STACK = {"w": whole(3, 16, 16, high=1)}
X = whole(4, 16, seed=1, high=1)
REMAT = {
    "none": None,
    "all": {},
    "products": {"policy": jax.checkpoint_policies.dots_with_no_batch_dims_saveable},
}


@pytest.mark.sweep(keep=["products-bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", REMAT)
def test_a_stack_is_compressed_once_in_the_dtype_of_its_products(remat, dtype):
    fn = lambda params, x: stack(params, x, remat=REMAT[remat], dtype=dtype)
    params, plan = planned(fn, STACK, X)
    fast = js.accelerate(fn, plan, implementation="xla")
    got, wanted = (jax.jit(jax.value_and_grad(f))(params, X) for f in (fast, fn))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert twice_outside(calls(jax.grad(fast), params, X, name="_values_of"))
    # A product of the scan, and its gradient; the product again if it is not saved.
    made = calls(jax.grad(fast), params, X, name="decompress")
    assert len([inside for inside in made if "scan" in inside]) == 2 + (remat == "all")
    program = jax.make_jaxpr(jax.grad(fast))(params, X).jaxpr
    values = [
        eqn.outvars[0].aval.dtype
        for _, eqn in primitives(program)
        if eqn.params.get("name") == "_values_of"
    ]
    assert values == [dtype, dtype]


def twice_outside(found):
    """Whether two forms are made, neither in a loop nor in `jax.checkpoint`."""
    loops = {"scan", "checkpoint", "remat2"}
    return len(found) == 2 and not any(loops & {*inside} for inside in found)


def accumulated(loss, params, batches):
    """The mean gradient of some batches, one after the other."""
    add = lambda total, x: (
        jax.tree.map(jnp.add, total, jax.grad(loss)(params, x)),
        None,
    )
    return lax.scan(add, jax.tree.map(jnp.zeros_like, params), batches)[0]


@pytest.mark.sweep(keep=["all"])
@pytest.mark.parametrize("remat", REMAT)
def test_gradients_that_are_accumulated_inside_share_the_compressed_weights(remat):
    batches = jnp.stack([X, 2 * X, -X])
    loss = lambda params, x: stack(params, x, remat=REMAT[remat])
    params, plan = planned(loss, STACK, X)
    gradient = lambda params, batches: accumulated(loss, params, batches)
    fast = js.accelerate(gradient, plan, implementation="xla")
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(fast)(params, batches),
        gradient(params, batches),
    )
    assert twice_outside(calls(fast, params, batches, name="_values_of"))
    made = calls(fast, params, batches, name="decompress")
    assert len([inside for inside in made if "scan" in inside]) == 2 + (remat == "all")


def network(params, x, y):
    h = jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"])
    return jnp.mean((h @ params["down"]["kernel"] - y) ** 2)


def small_network():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
    params = {
        "up": {"kernel": draw(16, 32), "bias": draw(32)},
        "down": {"kernel": draw(32, 16)},
    }
    return params, draw(8, 16), draw(8, 16)


def trained(loss, plan, steps, masked):
    params, x, y = small_network()
    tx = js.wrap_optimizer(optax.adamw(1e-2), plan)

    def step(carry, _):
        params, state = carry
        of = loss(js.get_masks(state)) if masked else loss(None)
        value, grads = jax.value_and_grad(of)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = js.mask_params(params, js.create_masks(params, plan))
    run = jax.jit(lambda start: lax.scan(step, start, length=steps))
    (params, _), values = run((params, tx.init(params)))
    return params, values


@pytest.mark.sweep(keep=["True"])
@pytest.mark.parametrize("masked", [False, True])
def test_200_steps_on_a_cpu_are_those_of_the_plain_function_bit_for_bit(masked):
    plan = planned(network, *small_network())[1]
    plain = trained(lambda _: network, plan, 200, masked=False)
    fast = lambda masks: js.accelerate(network, plan, masks=masks)
    got = trained(fast, plan, 200, masked=masked)
    jax.tree.map(np.testing.assert_array_equal, got, plain)


@pytest.mark.sweep
def test_steps_on_compressed_weights_stay_sparse_and_follow_the_plain_ones():
    plan = planned(network, *small_network())[1]
    plain, losses = trained(lambda _: network, plan, 20, masked=False)
    fast = lambda masks: js.accelerate(network, plan, masks=masks, implementation="xla")
    for masked in (False, True):
        got, values = trained(fast, plan, 20, masked=masked)
        js.check_sparsity(got, plan)
        np.testing.assert_allclose(values, losses, rtol=1e-4)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
        jax.tree.map(close, got, plain)


@pytest.mark.sweep
def test_sr_ste_finds_masks_and_forms_anew():
    params, x, y = small_network()
    plan = planned(network, params, x, y)[1]
    tx = optax.chain(js.add_sr_ste_decay(plan, decay=0.01), optax.sgd(0.1))

    def train(loss):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, tx.init(params)
        return jax.jit(lambda start: lax.scan(step, start, length=10)[0][0])(start)

    plain = train(lambda p, x, y: network(js.straight_through(p, plan), x, y))
    on_cpu = train(js.accelerate(network, plan, masks="best"))
    jax.tree.map(np.testing.assert_array_equal, on_cpu, plain)
    fast = js.accelerate(network, plan, masks="best", implementation="xla")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, train(fast), plain)
    assert len(calls(fast, params, x, y, name="_values_of")) == 4


@pytest.mark.usefixtures("without_annotations")
def test_errors_name_leaf_shapes_and_remedy():
    params, x, y = small_network()
    masked, plan = planned(network, params, x, y)
    fast = js.accelerate(network, plan)
    message = (
        r"leaf 'down/kernel' of shape \(32, 16\) has 4 weights in a group of 4 along "
        "axis 0, but its plan is '2:4 transposable along axes 0 and 1': give mask_p"
    )
    with pytest.raises(ValueError, match=message):
        fast(masked | {"down": params["down"]}, x, y)
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    masks["up"]["bias"] = None
    with pytest.raises(ValueError, match="has a mask that keeps 4 weights"):
        js.accelerate(network, plan, masks=masks)(params, x, y)
    masks = js.create_masks(params, plan)
    masks["up"]["bias"] = jnp.ones(32, bool)
    with pytest.raises(ValueError, match=r"leaf 'up/bias' of shape \(32,\) has a mask"):
        js.accelerate(network, plan, masks=masks)(params, x, y)
    with pytest.raises(ValueError, match="implementation 'gpu' is unknown"):
        js.accelerate(network, plan, implementation="gpu")
    with pytest.raises(ValueError, match="masks 'all' are unknown"):
        js.accelerate(network, plan, masks="all")
    with pytest.raises(ValueError, match=r"leaf 'up/kernel'.*'cuda' is not available"):
        js.accelerate(network, plan, implementation="cuda")(masked, x, y)


SHARDED = """
import re
import sys
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxsparse as js
from jaxsparse.kernels import cuda_target
from tests.compressed.accelerated import planned, whole

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
implementation, dtype, layers = sys.argv[1:]
cuda_target.unavailable = lambda _: ""  # XLA multiplies in the kernel's stead


def collectives(compiled):
    "How many there are, and how many numbers are gathered."
    found = re.findall(f" = (.*?) ({KINDS})(-start)?[(]", compiled.as_text())
    gathered = [types for types, kind, _ in found if kind == "all-gather"]
    shapes = re.findall(r"\\[([0-9,]+)\\]", " ".join(gathered))
    return len(found), sum(prod(map(int, shape.split(","))) for shape in shapes)


def layer(h, w):
    h = jnp.clip(h @ w["up"].astype(dtype), -2, 2)
    return jnp.clip(h @ w["down"].astype(dtype), -2, 2), None


def fn(params, x):
    one = jax.checkpoint(layer) if layers == "remat" else layer
    if layers == "unrolled":
        for i in range(2):
            x, _ = one(x, {name: w[i] for name, w in params.items()})
    else:
        x, _ = jax.lax.scan(one, x, params)
    return jnp.sum(x.astype(jnp.float32))


mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
params = {"up": whole(2, 128, 256, high=1), "down": whole(2, 256, 128, high=1, seed=1)}
x = whole(1024, 128, high=1, seed=2).astype(dtype)
params, plan = planned(fn, params, x)
fast = js.accelerate(fn, plan, implementation=implementation)
cases = {
    "data": ((), (), "d"),
    "fsdp": ((None, ("d", "m")), (None, ("d", "m")), ("d", "m")),
    "fsdp along outputs": ((None, None, "d"), (None, None, "d"), "d"),
    "tensor": ((None, None, "m"), (None, "m"), None),
    "fsdp and tensor": ((None, "d", "m"), (None, "m", "d"), "d"),
}
wanted = jax.value_and_grad(fn)(params, x)
if dtype == "float16":  # sums of parts might overflow: what a product sums is gathered
    cases = {name: case for name, case in cases.items() if "tensor" not in name}
for name, (up, down, rows) in cases.items():
    placed = {"up": put(params["up"], *up), "down": put(params["down"], *down)}
    operands = placed, put(x, rows)
    plain, mine = (
        jax.jit(jax.value_and_grad(f)).lower(*operands).compile() for f in (fn, fast)
    )
    (count, numbers), (most, dense) = collectives(mine), collectives(plain)
    assert most and count <= most, (name, count, most)
    if implementation == "cuda":  # nine numbers of sixteen bits for sixteen weights
        assert numbers * 16 == dense * 9, (name, numbers, dense)
        assert (dense > 0) == ("fsdp" in name), name
    # Sums over devices are rounded once more.
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2**-7 * abs(b).max())
    jax.tree.map(close, mine(*operands), wanted)
"""


@pytest.mark.sweep(keep=["cuda-bfloat16-remat"], full=["unrolled"])
@pytest.mark.parametrize(
    ("implementation", "dtype", "layers"),
    [
        ("xla", "float32", "scan"),
        ("cuda", "bfloat16", "scan"),
        ("cuda", "bfloat16", "remat"),
        ("cuda", "bfloat16", "unrolled"),
        ("cuda", "float16", "scan"),
    ],
)
def test_eight_devices_send_no_more_than_for_dense_weights(
    implementation, dtype, layers
):
    run_on_eight_devices("-c", SHARDED, implementation, dtype, layers)
