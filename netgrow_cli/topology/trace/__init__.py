"""From model code to a spec: `torch.export` gives the operations, which become the layers of a spec.

source.py    a model and its inputs, from `package.module:factory` or a Hugging Face folder
inputs.py    `--input float32[2,3,96,96]`
reading.py   the nodes of an exported graph
convert.py   a graph to layers; handlers/: what becomes of each operation
fuse.py      groups of operations that are one: a written-out rms_norm
write.py     the spec's text
"""
