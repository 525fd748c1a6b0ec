"""The operations that ship with the project, one file per slot; importing this registers them."""

from . import activation, baseline, coefficient_value, query, query_key

__all__ = ["activation", "baseline", "coefficient_value", "query", "query_key"]
