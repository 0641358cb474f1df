"""Channels that go through a model together: permuted, or taken out."""

from jaxsparse._channels.groups import (
    ChannelGroup as ChannelGroup,
    ChannelGroups as ChannelGroups,
    ChannelMember as ChannelMember,
    channel_groups as channel_groups,
)
from jaxsparse._channels.member_view import (
    read_member as read_member,
)
