"""Blocks that know torch and nothing of data, objectives or flags."""
