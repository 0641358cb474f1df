"""Benchmarks: every figure of the README comes from a command here."""
