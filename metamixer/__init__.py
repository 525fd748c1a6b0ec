"""MetaMixer and FFNet: build, train and deploy networks whose mixers are filled slot by slot.

Source: arXiv 2406.02021. `import metamixer.ffnet` registers FFNet in timm: `timm.create_model("ffnet_1")`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .config import Config, ConfigError, differences, digest, override, parse

if TYPE_CHECKING:
    from .library import *  # noqa: F403

__all__ = ["Config", "ConfigError", "differences", "digest", "override", "parse"]


def __getattr__(name: str) -> Any:
    """The other names, from `library`. Torch takes seconds to import, and commands that only read runs do without."""
    if find_spec(f"{__name__}.{name}"):
        raise AttributeError(f"{name} is a module, which the import statement loads")
    return getattr(import_module(".library", __name__), name)
