"""Runs a jaxpr on arrays: to look at what flows where, or to run it differently."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse._trace.jaxpr import (
    BoundJaxpr,
    Call,
    Cond,
    Path,
    Scan,
    ShardMap,
    While,
    body_part,
    control_flow,
    interpret,
    step_into,
)


class Site(NamedTuple):
    """An equation that is about to run.

    Attributes:
      eqn: the equation.
      path: where it stands.
      steps: the number of the step of each scan around it, by the scan's path.
    """

    eqn: Any
    path: Path
    steps: Mapping[Path, Any]


#: `(site, inputs, state) -> (outputs or None, state)`; see `evaluate`.
Rule = Callable[[Site, list[Any], Any], tuple[Sequence[Any] | None, Any]]


def evaluate(inner: BoundJaxpr, args: Sequence[Any], rule: Rule, state: Any = None):
    """Runs a jaxpr on arrays, or on pytrees that stand for arrays.

    Args:
      inner: the jaxpr and its constants.
      args: the inputs.
      rule: `(site, inputs, state) -> (outputs, state)`: outputs of what is to run
        differently, and None for what is to run as it stands. It is asked inside loops
        and calls too.
      state: a pytree of arrays that goes from equation to equation, through loops and
        branches too: what a walk accumulates.

    Returns:
      The outputs and the state behind the last equation. Custom derivative rules inside
      are not kept.
    """
    return _evaluate(inner, args, rule, state, (), {})


def keep_equation(site: Site, inputs: list[Any], state: Any) -> tuple[None, Any]:
    """The rule that changes nothing."""
    del site, inputs
    return None, state


def _evaluate(inner, args, rule, state, path: Path, steps: Mapping[Path, Any]):
    def apply(eqn, inputs):
        nonlocal state  # `interpret` hands on values alone
        site = Site(eqn, step_into(path, eqn), steps)
        outputs, state = rule(site, inputs, state)
        if outputs is None:
            outputs, state = run_equation(site, inputs, rule, state)
        return outputs

    outputs = interpret(inner, args, apply)
    return outputs, state


def run_equation(
    site: Site,
    inputs: Sequence[Any],
    rule: Rule,
    state: Any,
    carried: Callable[[Any], Any] = lambda x: x,
):
    """Runs one equation as it stands; the rule is asked for what is inside.

    A rule may call it with other inputs than those that it was given, and say what is
    to be done to all that a loop carries from step to step.
    """
    eqn, path, steps = site
    match control_flow(eqn):
        case Call(body):
            return _evaluate(body, inputs, rule, state, path, steps)
        case Cond(branches):

            def branch(i: int):
                inside = step_into(path[:-1], eqn, i)
                return lambda state, *x: _evaluate(
                    branches[i], x, rule, state, inside, steps
                )

            runs = [branch(i) for i in range(len(branches))]
            return lax.switch(inputs[0], runs, state, *inputs[1:])
        case Scan(body, num_consts, num_carry, length, reverse, unroll):
            consts = inputs[:num_consts]
            carry = inputs[num_consts : num_consts + num_carry]

            def step(before, each):
                (carry, state), (number, xs) = before, each
                values, known = [*consts, *carry, *xs], {**steps, path: number}
                outputs, state = _evaluate(body, values, rule, state, path, known)
                kept = [carried(x) for x in outputs[:num_carry]]
                return (kept, state), outputs[num_carry:]

            xs = (jnp.arange(length, dtype=jnp.int32), inputs[num_consts + num_carry :])
            (carry, state), ys = lax.scan(
                step, (carry, state), xs, length=length, reverse=reverse, unroll=unroll
            )
            return [*carry, *ys], state
        case While(condition, body, num_condition, num_body):
            for_condition = inputs[:num_condition]
            for_body = inputs[num_condition : num_condition + num_body]
            test = step_into(path[:-1], eqn, 1)
            inside = step_into(path[:-1], eqn, body_part(condition))

            def running(before):
                # What a condition accumulates is lost: it gives back but truths.
                values = [*for_condition, *before[0]]
                return _evaluate(condition, values, rule, before[1], test, steps)[0][0]

            def again(before):
                values = [*for_body, *before[0]]
                new, state = _evaluate(body, values, rule, before[1], inside, steps)
                new = [carried(x) for x in new]
                if body_part(condition):  # of a batch those that are done stay so
                    new = _where(running(before), new, before[0])
                return new, state

            carry = inputs[num_condition + num_body :]
            return lax.while_loop(
                lambda before: jnp.any(running(before)), again, (carry, state)
            )
        case ShardMap(body, mesh, in_specs, out_specs, check_vma, manual_axes):
            # The state of one shard is not that of the whole.
            alone = lambda *shards: tuple(
                _evaluate(body, shards, rule, state, path, steps)[0]
            )
            run = jax.shard_map(
                alone,
                mesh=mesh,
                in_specs=in_specs,
                out_specs=out_specs,
                axis_names=manual_axes,
                check_vma=check_vma,
            )
            return run(*inputs), state
    return bind(eqn, inputs), state


def bind(eqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Runs one equation on arrays as JAX does, custom derivative rules and all."""
    params = eqn.primitive.get_bind_params(eqn.params)
    outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _where(running: Any, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """The new values of the loops of a batch that are running; it leads their axes."""
    truth = lambda x: running.reshape(running.shape + (1,) * (x.ndim - running.ndim))
    choose = lambda a, b: lax.select(jnp.broadcast_to(truth(a), a.shape), a, b)
    return [jax.tree.map(choose, *pair) for pair in zip(new, old, strict=True)]
