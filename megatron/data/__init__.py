"""Tokens on disk, and the samples made of them."""
