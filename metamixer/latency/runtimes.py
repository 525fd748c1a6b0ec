"""The runtimes: each prepares a network once, as a file, and loads that file in every session.

A new one is a class in `RUNTIMES`. All run on the CPU in fp32.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..config import ConfigError


class Loaded(NamedTuple):
    """A network in a runtime, with its image: `call` runs it once, `scores` makes an array of what that returns."""

    call: Callable[[], Any]
    scores: Callable[[Any], np.ndarray]

    def time(self, calls: int) -> list[float]:
        """Milliseconds of so many calls, after one that isn't counted."""
        self.call()
        times = []
        for _ in range(calls):
            begin = time.perf_counter_ns()
            self.call()
            times.append((time.perf_counter_ns() - begin) / 1e6)
        return times


class Runtime(ABC):
    """A runtime that needs `packages`, of which the first one's version is its own, and which `extra` installs."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = ""

    def check(self) -> None:
        """Refuse where it can't run. Raises ConfigError: a package or a compiler is missing."""
        from ..deploy.common import require

        require(self.packages, self.extra)

    @abstractmethod
    def prepare(self, model: Any, image: Any, path: Path) -> None:
        """Write `model` for inputs like the tensor `image` to `path`.

        Raises ConfigError: it does not convert; the line names the operation and its layer.
        """

    @abstractmethod
    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        """What `prepare` wrote, ready to run."""

    def run(self, path: Path, image: Any) -> Any:
        """The scores of what `prepare` wrote, for one tensor of images."""
        import torch

        loaded = self.load(path, image.contiguous().numpy(), 1)
        return torch.from_numpy(loaded.scores(loaded.call()))

    def version(self) -> str:
        return f"{self.packages[0]} {version(self.packages[0])}"


class Eager(Runtime):
    """PyTorch, operation by operation, images in NCHW."""

    name, packages = "eager", ("torch",)

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        import torch

        try:
            torch.save(model, path)
        except Exception as error:  # pickle raises many kinds
            raise ConfigError(f"{self.name} cannot take it: {' '.join(str(error).split())[:200]}") from None

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import torch

        torch.set_num_threads(threads)
        model, x = self._placed(torch.load(path, weights_only=False), torch.from_numpy(image))
        run = torch.no_grad()(model.__call__)
        return Loaded(lambda: run(x), lambda scores: scores.numpy())

    def _placed(self, model: Any, x: Any) -> tuple[Any, Any]:
        return model, x


class ChannelsLast(Eager):
    """PyTorch, operation by operation, weights and images in NHWC."""

    name = "eager-channels-last"

    def _placed(self, model: Any, x: Any) -> tuple[Any, Any]:
        import torch

        return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


class Compiled(Eager):
    """torch.compile with its defaults; compiled kernels are cached on the disk from session to session."""

    name = "compile"

    def check(self) -> None:
        from ..training.learner import has_cpp_compiler

        if not has_cpp_compiler():
            raise ConfigError("torch.compile needs a C++ compiler on a CPU, e.g. Debian's package g++")

    def _placed(self, model: Any, x: Any) -> tuple[Any, Any]:
        import torch
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # a pool of compilers would live on beside what is timed
        # networks of one class share their code: beyond this limit the next would run eagerly, without a word
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        return torch.compile(model), x


class OnnxRuntime(Runtime):
    """ONNX Runtime's CPU kernels."""

    name, packages, extra = "onnxruntime", ("onnxruntime", "onnx", "onnxscript"), "onnx"

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        from ..deploy import onnx

        path.write_bytes(onnx.convert(model, image))

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: image}
        return Loaded(lambda: session.run(None, inputs), lambda outputs: outputs[0])


class ExecuTorch(Runtime):
    """ExecuTorch, XNNPACK's kernels for what they cover and portable ones for the rest."""

    name, packages, extra = "executorch", ("executorch",), "executorch"

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        from ..deploy import executorch

        path.write_bytes(executorch.convert(model, image)[0])

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Program

        portable_lib._unsafe_reset_threadpool(threads)
        method = Program.get().load_program(path).load_method("forward")
        inputs = [torch.from_numpy(image)]
        return Loaded(lambda: method.execute(inputs), lambda outputs: outputs[0].clone().numpy())


RUNTIMES: dict[str, type[Runtime]] = {
    kind.name: kind for kind in (Eager, ChannelsLast, Compiled, OnnxRuntime, ExecuTorch)
}


def find_runtime(name: str) -> Runtime:
    """A runtime by its name.

    Raises ConfigError: no such runtime, or one that can't run here; the line says what it needs.
    """
    if name not in RUNTIMES:
        raise ConfigError(f"runtime {name!r}: one of {', '.join(RUNTIMES)}, or all")
    found = RUNTIMES[name]()
    found.check()
    return found


def device() -> str:
    """This machine's processor, as its vendor calls it, with the number of its CPUs."""
    name = platform.processor() or platform.machine()
    if sys.platform == "darwin":
        name = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    elif (info := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = next(iter(models), name)
    return f"{name}, {os.cpu_count()} CPUs"


def system() -> str:
    """The operating system and its version."""
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
