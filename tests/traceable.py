"""Every public function that can be traced, called on small arrays."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from jaxsparse import magnitude
from jaxsparse._calibration.admm_searcher import _prune as _admm
from jaxsparse._calibration.fit_weights import _fit
from jaxsparse._calibration.importances import _importances
from jaxsparse._calibration.refine_masks import _refine
from jaxsparse._calibration.sparsegpt_searcher import _prune
from jaxsparse._calibration.wanda import _score


class Case(NamedTuple):
    """A call.

    Attributes:
      name: the public function, and what else tells the case.
      fn: takes `args` and returns a pytree of arrays.
      args: arrays.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]


PATTERNS = {
    "2:4": "2:4",
    "1:4": "1:4",
    "8:16": "8:16",
    "5:10": "5:10",
    "16:32": "16:32",
    "2:4 transposable": js.NM(2, 4, transposable=True),
    "4:8 transposable": js.NM(4, 8, transposable=True),
    "per output": js.PerOutput(0.5),
    "unstructured": js.Unstructured(0.5),
    "across leaves": js.Unstructured(0.5, across_leaves=True),
    "block": js.Block((4, 4), 0.5),
    "channel": js.Channel(0.5),
}
_KEY = jax.random.key(2)
_WEIGHT = jax.random.normal(jax.random.key(0), (160, 64))
_X = jax.random.normal(jax.random.key(1), (6, 160))
_PARAMS = {"up": {"kernel": _WEIGHT, "bias": jnp.zeros(64)}}


def model(params, x):
    """The forward function of the cases."""
    return x @ params["up"]["kernel"] + params["up"]["bias"][None]


def rules(pattern):
    """Plans the kernel of the cases."""
    return [js.Rule(".*kernel", pattern, axis=0), js.Rule(".*", None)]


def array_cases() -> list[Case]:
    """Functions of one weight."""
    compressed = js.compress(_WEIGHT)
    int8 = js.quantize_compressed(compressed)
    half = js.compress(_WEIGHT.T.astype(jnp.bfloat16), axis=1)
    cases = [
        Case("create_asp_mask", js.create_asp_mask, (_WEIGHT,)),
        Case("create_asp_mask ragged", js.create_asp_mask, (_WEIGHT[:, :15].T,)),
        Case("mn_1d_best", lambda w: js.mn_1d_best(w, 4, 2), (_WEIGHT,)),
        Case("m4n2_1d", js.m4n2_1d, (_WEIGHT,)),
        Case("reshape_1d", lambda w: js.reshape_1d(w, 4)[0], (_WEIGHT[:, :15],)),
        Case("fill", magnitude.fill, (_WEIGHT,)),
        Case(
            "compute_valid_1d_patterns",
            lambda: js.compute_valid_1d_patterns(4, 2),
            (),
        ),
        Case("nm_matmul", js.nm_matmul, (_X, compressed)),
        Case(
            "nm_matmul gradient",
            jax.grad(lambda x, w: js.nm_matmul(x, w).sum()),
            (_X, compressed),
        ),
        Case("quantize_compressed", js.quantize_compressed, (compressed,)),
        Case(
            "quantize_compressed groups",
            partial(js.quantize_compressed, group_size=32, scales="mse"),
            (compressed,),
        ),
        Case(
            "quantize_compressed importances",
            lambda w, x: js.quantize_compressed(w, importances=x),
            (compressed, _WEIGHT**2),
        ),
        Case("decompress int8", js.decompress, (int8,)),
        Case("nm_matmul int8", js.nm_matmul, (_X, int8)),
        Case(
            "nm_matmul quantized rows",
            partial(js.nm_matmul, quantize_activations=True),
            (_X, int8),
        ),
        Case("to_semi_structured", js.to_semi_structured, (half,)),
        Case(
            "from_semi_structured",
            lambda values, meta: js.from_semi_structured(values, meta, axis=1),
            js.to_semi_structured(half),
        ),
    ]
    for pattern in ("2:4", "4:8", "8:16"):
        for axis in (0,) if pattern == "8:16" else (0, 1):
            compress = lambda w, p=pattern, a=axis: js.compress(w, p, axis=a)
            cases += [
                Case(f"compress {pattern} {axis}", compress, (_WEIGHT,)),
                Case(
                    f"decompress {pattern} {axis}", js.decompress, (compress(_WEIGHT),)
                ),
            ]
    return cases


def tree_cases() -> list[Case]:
    """Functions of trees of parameters."""
    compressed = js.compress_params(_PARAMS, rules("2:4"))
    gradients = jax.tree.map(jnp.ones_like, _PARAMS)
    apply = js.sparse_apply(model)
    square = lambda values, other, x: jnp.sum(apply(_with(other, values), x) ** 2)
    values = compressed["up"]["kernel"].values
    cases = [
        Case(
            "random_scores",
            lambda p: js.random_scores(p, jax.random.key(0)),
            (_PARAMS,),
        ),
        Case("saliency_scores", js.saliency_scores, (_PARAMS, gradients)),
        Case("sparsity", js.sparsity, (_PARAMS,)),
        Case(
            "compress_params", lambda p: js.compress_params(p, rules("2:4")), (_PARAMS,)
        ),
        Case("decompress_params", js.decompress_params, (compressed,)),
        Case("sparse_apply", apply, (compressed, _X)),
        Case("sparse_apply gradient", jax.grad(square), (values, compressed, _X)),
        Case("schedules", lambda i: js.cubic_schedule(1, 9)(i), (jnp.int32(3),)),
        Case("schedule of one", lambda i: js.one_shot_schedule(4)(i), (jnp.int32(3),)),
    ]
    for name, pattern in PATTERNS.items():
        cases += [
            Case(f"create_masks {name} {packed}", _masks(pattern, packed), (_PARAMS,))
            for packed in (False, True)
        ]
    return cases


def _with(compressed, values):
    kernel = compressed["up"]["kernel"]
    new = js.Compressed(values, kernel.indices, kernel.pattern, kernel.axis)
    return {"up": {**compressed["up"], "kernel": new}}


def _masks(pattern, packed):
    def masked(params):
        masks = js.create_masks(params, rules(pattern), packed=packed)
        return masks, js.mask_params(params, masks)

    return masked


def training_cases() -> list[Case]:
    """Steps of training."""
    inner, plan = optax.adam(1e-2), rules("2:4")
    fraction = lambda _: 0.3
    schedule = js.cubic_schedule(0, 8)
    key = jax.random.key(0)
    transforms = {
        "wrap_optimizer": js.wrap_optimizer(inner, plan),
        "wrap_optimizer gradual": js.wrap_optimizer(inner, plan, schedule=schedule),
        "keep_params_sparse": optax.chain(inner, js.keep_params_sparse(plan)),
        "add_sr_ste_decay": optax.chain(js.add_sr_ste_decay(plan), inner),
        "add_sr_ste_decay schedule": optax.chain(
            js.add_sr_ste_decay(plan, schedule=js.one_shot_schedule(1, end=2)), inner
        ),
        "regrow_by_gradient": js.regrow_by_gradient(
            inner, plan, fraction=fraction, every=1
        ),
        "regrow_at_random": js.regrow_at_random(
            inner, plan, key=key, fraction=fraction, every=1
        ),
    }

    def step(tx):
        def run(params, x):
            state = tx.init(params)
            loss = lambda params: jnp.sum(model(params, x) ** 2)
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates)

        return run

    def through(params, x):
        loss = lambda p: jnp.sum(model(js.straight_through(p, plan), x) ** 2)
        return jax.grad(loss)(params)

    def accelerated(params, x):
        both = rules(PATTERNS["2:4 transposable"])
        options = {"masks": "best", "implementation": "xla"}
        loss = js.accelerate(lambda p: jnp.sum(model(p, x) ** 2), both, **options)
        return jax.grad(loss)(params)

    def squared_relu(params, x):
        x, w = x[:, :64].astype(jnp.bfloat16), params["up"]["kernel"]
        h = jnp.concatenate([x, x, x, x, x, x, x, x])[:16]
        return jax.nn.relu(h) ** 2 @ w[:64].astype(jnp.bfloat16)

    def activations(params, x):
        fast = js.accelerate(squared_relu, None, activations=True)
        gradient = jax.grad(lambda p: jnp.sum(fast(p, x).astype(jnp.float32)))(params)
        return gradient, js.dropped_activations(squared_relu, params, x)

    def measured(params):
        state = transforms["wrap_optimizer"].init(params)
        return js.metrics(state, params), js.get_masks(state)

    return [
        *(Case(name, step(tx), (_PARAMS, _X)) for name, tx in transforms.items()),
        Case("straight_through", through, (_PARAMS, _X)),
        Case("accelerate", accelerated, (_PARAMS, _X)),
        Case("accelerate dropped_activations", activations, (_PARAMS, _X)),
        Case("metrics get_masks", measured, (_PARAMS,)),
    ]


def calibration_cases() -> list[Case]:
    """The programs of searchers, which read values between them."""
    params = {"w": _WEIGHT[:32, :16]}
    plan, x = (
        [js.Rule(".*", "2:4", axis=0)],
        jax.random.normal(key=jax.random.key(2), shape=(99, 32)),
    )
    fn = lambda params, x: x @ params["w"]
    (statistics,) = js.collect_statistics(fn, params, [x], plan=plan).values()
    masks, pattern = js.create_masks(params, plan), js.NM(2, 4)
    cases = [
        Case("WandaSearcher", _score, (params["w"], statistics)),
        Case("input_importances", _importances, (statistics,)),
        Case(
            "fit_weights",
            partial(_fit, shrinkage=0.1),
            (params["w"], masks["w"], statistics),
        ),
    ]
    for update in (True, "optimal"):
        prune = lambda w, s, u=update: tuple(_prune(w, s, pattern, 0, 0.01, 0.1, u))
        cases.append(
            Case(f"SparseGPTSearcher {update}", prune, (params["w"], statistics))
        )
    arguments = params["w"], masks["w"], statistics
    for refined in (pattern, js.PerOutput(0.5)):
        refine = lambda w, m, s, p=refined: _refine(w, m, s, p, 2, 0.1)
        cases.append(Case(f"refine_masks {refined}", refine, arguments))
    for searched in (pattern, js.NM(2, 4, transposable=True)):
        search = lambda w, s, p=searched: _admm(w, s, p, 2, 6, 0.1)
        cases.append(
            Case(f"ADMMSearcher {searched}", search, (params["w"], statistics))
        )
    return cases


def recovery_cases() -> list[Case]:
    """What brings accuracy back."""
    teacher = model(_PARAMS, _X)
    distil = partial(js.distillation_loss, temperature=2.0, top_k=5)
    masks = js.create_masks(_PARAMS, rules("2:4"))
    init = partial(js.init_mask_logits, plan=rules("2:4"), key=_KEY)
    soft = lambda logits, warmth: js.learned_masks(logits, key=_KEY, temperature=warmth)
    create = partial(js.create_adapters, plan=rules("2:4"), rank=4, key=_KEY)
    adapted = lambda params, adapters: js.apply_adapters(params, adapters, masks)
    return [
        Case("init_mask_logits", init, (_PARAMS,)),
        Case("learned_masks", js.learned_masks, (init(_PARAMS),)),
        Case("learned_masks soft", soft, (init(_PARAMS), jnp.float32(2.0))),
        Case("create_adapters", create, (_PARAMS,)),
        Case("apply_adapters", adapted, (_PARAMS, create(_PARAMS))),
        Case("distillation_loss", jax.grad(distil), (teacher / 2, teacher)),
        Case("feature_loss", jax.grad(js.feature_loss), (teacher / 2, teacher)),
        Case("reap_scores", js.reap_scores, (jnp.abs(_X[:, :4]), _X[:, 4:8])),
    ]


def all_cases() -> list[Case]:
    """All of them."""
    return [
        *array_cases(),
        *tree_cases(),
        *training_cases(),
        *calibration_cases(),
        *recovery_cases(),
    ]
