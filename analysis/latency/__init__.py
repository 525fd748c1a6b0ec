"""How long a network takes on real runtimes: measured here, measured on a phone, or published.

`rows` holds what a measurement says and the file they are kept in, and needs no torch. `imports` reads other
programs' measurements, `measure` makes new ones with the runtimes in `backends`, `correlation` asks which cost
measure ranks them. The networks are converted by `metamixer.deploy`.
"""

from .rows import COLUMNS, load, network_key, published

__all__ = ["COLUMNS", "load", "network_key", "published"]
