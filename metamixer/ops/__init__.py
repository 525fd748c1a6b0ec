"""The operations that ship with the project, a file per slot and one for gates; importing this registers."""

from . import activation, baseline, coefficient_value, gate, query, query_key, series

__all__ = ["activation", "baseline", "coefficient_value", "gate", "query", "query_key", "series"]
