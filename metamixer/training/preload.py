"""What the runs of a launch share, done once in the process that they are forked from: imports and code digests."""

from . import provenance, train  # noqa: F401 (imported so that a forked run finds it)

provenance.digest_package()
