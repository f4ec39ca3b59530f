"""Budgets to runs: which sizes, how long, with which flags, at what cost."""
