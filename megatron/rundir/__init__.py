"""The folder that a run leaves, as every reader and writer sees it. Standard library only.

names     what its files and checkpoints are called
fields    what stands in them: names, types, units
records   metrics.jsonl, line by line
status    whether a run is done, running, stopped or failed
folders   the run folders below a folder
index     the header of a corpus's .idx
"""
