"""Which questions are asked: one grid a file, data not code. The docstring asks, `GRID` says how it is answered."""
