"""Blocks of channels that lie on one device, so that permuting moves no weights."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxsparse._channels.groups import ChannelGroup, ChannelMember
from jaxsparse._sharding import shards_along


def shard_blocks(leaves: Mapping[str, Any], group: ChannelGroup) -> int:
    """Returns into how many equal blocks the shards of leaves cut the channels.

    Args:
      leaves: the leaves by path.
      group: the channels.
    """
    blocks = [_blocks(leaves[member.path], member) for member in group.members]
    return math.lcm(*blocks)


def _blocks(leaf: Any, member: ChannelMember) -> int:
    sharding = getattr(leaf, "sharding", None) if isinstance(leaf, jax.Array) else None
    if not isinstance(sharding, NamedSharding):
        return 1
    shard = leaf.shape[member.axis] // shards_along(sharding, member.axis)
    return max(1, member.view[member.channel] * member.stride // shard)
