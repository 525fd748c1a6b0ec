"""Which questions are asked: one grid per file, data not code. The docstring asks, `GRID` says how it is answered."""
