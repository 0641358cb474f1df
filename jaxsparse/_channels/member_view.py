"""Views of members (a stand-in until the analysis is merged)."""

from typing import Any

from jaxsparse._channels.groups import ChannelMember


def read_member(leaf: Any, member: ChannelMember) -> Any:
    """Returns the view of a leaf that has the channels along one axis."""
    return leaf[tuple(slice(*x) for x in member.slices)].reshape(member.view)
