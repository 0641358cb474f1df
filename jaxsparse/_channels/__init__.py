"""Channels that go through a model together: permuted, or taken out."""
