"""From file to file: what the commands and the Python API call.

job.py            one change: open, plan, write, prove, publish
growing.py        which units expand and split make; shrinking.py: which ones prune and recycle take
recipe.py         several changes, one after another
verification.py   two checkpoints: are they the same function? record.py: folding back by the record
"""
