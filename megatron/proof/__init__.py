"""Proof that a layout changes speed and memory and nothing else: the same experiment at every layout and in one process."""
