"""Runs a jaxpr on arrays, with some of its equations observed or replaced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

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
      path: its path.
      steps: the index of the current step of each surrounding scan, by the scan's path.
    """

    eqn: JaxprEqn
    path: Path
    steps: Mapping[Path, Any]

    def inside(self, part: int = 0) -> Path:
        """Returns the path of one of the jaxprs in the equation."""
        return step_into(self.path[:-1], self.eqn, part)


#: `(site, inputs, state) -> (outputs or None, state)`; see `evaluate`.
EquationRule = Callable[[Site, list[Any], Any], tuple[Sequence[Any] | None, Any]]


def evaluate(
    bound: BoundJaxpr, args: Sequence[Any], rule: EquationRule, state: Any = None
) -> tuple[list[Any], Any]:
    """Runs a jaxpr on arrays, or on pytrees that represent arrays.

    Args:
      bound: the jaxpr and its constants.
      args: the inputs.
      rule: `(site, inputs, state) -> (outputs, state)`: returns the outputs of an
        equation that it replaces, and None for one that runs unchanged. It is called
        inside loops and calls too.
      state: a pytree of arrays that is passed from equation to equation, through loops
        and branches too, such as a running sum.

    Returns:
      The outputs, and the state after the last equation. Custom derivative rules inside
      are not kept.
    """
    return _evaluate(bound, args, rule, state, (), {})


def keep_equation(site: Site, inputs: list[Any], state: Any) -> tuple[None, Any]:
    """A rule that replaces nothing."""
    del site, inputs
    return None, state


def _evaluate(
    bound: BoundJaxpr,
    args: Sequence[Any],
    rule: EquationRule,
    state: Any,
    path: Path,
    steps: Mapping[Path, Any],
) -> tuple[list[Any], Any]:
    def apply(eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        nonlocal state  # `interpret` passes values only
        site = Site(eqn, step_into(path, eqn), steps)
        outputs, state = rule(site, inputs, state)
        if outputs is None:
            outputs, state = run_equation(site, inputs, rule, state)
        return outputs

    outputs = interpret(bound, args, apply, effects=True)
    return outputs, state


def run_equation(
    site: Site,
    inputs: Sequence[Any],
    rule: EquationRule,
    state: Any,
    carried: Callable[[Any], Any] = lambda x: x,
) -> tuple[Sequence[Any], Any]:
    """Runs one equation unchanged, and calls the rule for the equations inside it.

    Args:
      site: the equation.
      inputs: its inputs, which a rule may have changed.
      rule: the rule.
      state: the state.
      carried: applied to each new value that a loop carries to its next step, and to
        each that a branch returns.

    Returns:
      The outputs and the state.
    """
    match control_flow(site.eqn):
        case Call(body):
            return _evaluate(body, inputs, rule, state, site.path, site.steps)
        case Cond() as cond:
            return _run_cond(cond, site, inputs, rule, state, carried)
        case Scan() as scan:
            return _run_scan(scan, site, inputs, rule, state, carried)
        case While() as loop:
            return _run_while(loop, site, inputs, rule, state, carried)
        case ShardMap() as shard_map:
            return _run_shard_map(shard_map, site, inputs, rule, state), state
    return bind(site.eqn, inputs), state


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Runs one equation on arrays as JAX does, including custom derivative rules."""
    params = eqn.primitive.get_bind_params(eqn.params)
    outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _run_cond(
    cond: Cond,
    site: Site,
    inputs: Sequence[Any],
    rule: EquationRule,
    state: Any,
    carried: Callable[[Any], Any],
) -> tuple[Sequence[Any], Any]:
    def branch(i: int) -> Callable[..., Any]:
        body, path = cond.branches[i], site.inside(i)

        def run(state: Any, *x: Any) -> tuple[list[Any], Any]:
            outputs, state = _evaluate(body, x, rule, state, path, site.steps)
            return [carried(x) for x in outputs], state

        return run

    branches = [branch(i) for i in range(len(cond.branches))]
    return lax.switch(inputs[0], branches, state, *inputs[1:])


def _run_scan(
    scan: Scan,
    site: Site,
    inputs: Sequence[Any],
    rule: EquationRule,
    state: Any,
    carried: Callable[[Any], Any],
) -> tuple[Sequence[Any], Any]:
    first_carry, first_xs = scan.num_consts, scan.num_consts + scan.num_carry
    consts, carry = inputs[:first_carry], inputs[first_carry:first_xs]

    def step(before, each):
        (carry, state), (i, xs) = before, each
        args, steps = [*consts, *carry, *xs], {**site.steps, site.path: i}
        outputs, state = _evaluate(scan.body, args, rule, state, site.path, steps)
        carry = [carried(x) for x in outputs[: scan.num_carry]]
        return (carry, state), outputs[scan.num_carry :]

    (carry, state), ys = lax.scan(
        step,
        (carry, state),
        (jnp.arange(scan.length, dtype=jnp.int32), inputs[first_xs:]),
        length=scan.length,
        reverse=scan.reverse,
        unroll=scan.unroll,
    )
    return [*carry, *ys], state


def _run_while(
    loop: While,
    site: Site,
    inputs: Sequence[Any],
    rule: EquationRule,
    state: Any,
    carried: Callable[[Any], Any],
) -> tuple[Sequence[Any], Any]:
    first_body, first_carry = loop.num_condition, loop.num_condition + loop.num_body
    condition_consts = inputs[:first_body]
    body_consts = inputs[first_body:first_carry]
    part = body_part(loop.condition)

    def run(bound: BoundJaxpr, consts: Sequence[Any], part: int, before):
        carry, state = before
        args, path = [*consts, *carry], site.inside(part)
        return _evaluate(bound, args, rule, state, path, site.steps)

    def running(before):
        # The state that the condition returns is dropped: a loop carries none from it.
        (go_on,), _ = run(loop.condition, condition_consts, 1, before)
        return go_on

    def step(before):
        outputs, state = run(loop.body, body_consts, part, before)
        carry = [carried(x) for x in outputs]
        if part:  # the loops of a batch that are done keep their values
            carry = _where(running(before), carry, before[0])
        return carry, state

    start = inputs[first_carry:], state
    return lax.while_loop(lambda before: jnp.any(running(before)), step, start)


def _run_shard_map(
    shard_map: ShardMap,
    site: Site,
    inputs: Sequence[Any],
    rule: EquationRule,
    state: Any,
) -> Sequence[Any]:
    """Returns the outputs only: the state of one shard is not that of all shards."""

    def run(*shards: Any) -> tuple[Any, ...]:
        body, path = shard_map.body, site.path
        return tuple(_evaluate(body, shards, rule, state, path, site.steps)[0])

    return jax.shard_map(
        run,
        mesh=shard_map.mesh,
        in_specs=shard_map.in_specs,
        out_specs=shard_map.out_specs,
        axis_names=shard_map.manual_axes,
        check_vma=shard_map.check_vma,
    )(*inputs)


def _where(running: Any, new: Sequence[Any], old: Sequence[Any]) -> list[Any]:
    """Selects the new values for the loops of a batch that are still running.

    The axes of `running` are the leading axes of every value.
    """

    def select(new: Any, old: Any) -> Any:
        mask = running.reshape(running.shape + (1,) * (new.ndim - running.ndim))
        return lax.select(jnp.broadcast_to(mask, new.shape), new, old)

    return [jax.tree.map(select, *pair) for pair in zip(new, old, strict=True)]
