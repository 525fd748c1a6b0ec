"""Which errors are the surroundings' and not a run's own: the disk, the memory, the device.

A run that meets one is interrupted, and goes on when it is launched again; any other error fails it.
"""

from __future__ import annotations

import errno

from ..config import ConfigError


class SurroundingsError(ConfigError):
    """Disk, memory, device or another process failed a run, which goes on when it is launched again."""


_MEMORY = (
    *("can't allocate memory", "out of memory", "not enough memory", "STATUS_ALLOC_FAILED"),
    *("unable to mmap", "unable to open shared memory object", "unable to write to file"),
)
_DEVICE = (
    *("CUDA error", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "No CUDA GPUs", "no NVIDIA driver", "NVML"),
    *("HIP error", "XPU error", "MPS backend", "not compiled with CUDA"),
)
_OWN = "device-side assert"  # a wrong index in the run's own code, on every GPU alike


def surroundings(error: BaseException) -> str | None:
    """One line on an error of the surroundings and its remedy; None if the error is the run's own."""
    import torch  # here: `analysis` imports this class without torch

    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, SurroundingsError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return _out_of_memory(text)
    if isinstance(error, OSError):
        advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend this"
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or text}; {advice} and launch again to go on"
    if not isinstance(error, RuntimeError) or _OWN in str(error):
        return None
    if any(sign in str(error) for sign in _MEMORY):
        return _out_of_memory(text)
    if any(sign in str(error) for sign in _DEVICE):
        return f"the device failed ({text}); launch again to go on, on another one if it happens again"
    return None


def _out_of_memory(text: str) -> str:
    return f"out of memory ({text}); lower recipe.micro_batch, or free memory and launch again to go on"
