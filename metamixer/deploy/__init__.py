"""Networks for phones and other runtimes: folded, converted, written, and checked against eager PyTorch.

A module for each format (`coreml`, `executorch`, `onnx`), each with a `convert`; `export` writes a whole network with
its normalisation, and says what was checked. The runtimes are extras and are imported when needed.
"""
