"""The operations that ship with the project, in files by what they work on; importing this registers them all."""

from . import activation, baseline, dot_product, gate, map_keys, map_values, neighbourhood, query, series, values
