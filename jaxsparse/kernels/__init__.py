"""Kernels: arrays in, arrays out; they know nothing of patterns, plans or trees."""
