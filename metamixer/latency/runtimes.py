"""The runtimes: each prepares a network once, as a file, and loads that file in every session.

A new one is a class in `BACKENDS`. All run in fp32 but Core ML, whose programs are fp16.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Call = Callable[[], Any]


class Loaded:
    """A network in a runtime, with its image: `call` runs it once, `output` makes the scores of what that returns."""

    def __init__(self, call: Call, output: Callable[[Any], np.ndarray]) -> None:
        self.call, self._output = call, output

    def scores(self) -> np.ndarray:
        return self._output(self.call())

    def time(self, calls: int) -> list[float]:
        """Milliseconds of so many calls, after one that isn't counted."""
        self.call()
        times = []
        for _ in range(calls):
            begin = time.perf_counter_ns()
            self.call()
            times.append((time.perf_counter_ns() - begin) / 1e6)
        return times


class Backend(ABC):
    """A runtime.

    Attributes:
        packages, extra: what it needs, and the extra that installs it.
        tolerance: how far its scores may be from eager's, as a share of the largest.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    precision: ClassVar[str] = "fp32"
    compute_units: ClassVar[str] = "CPU"
    takes_threads: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-3

    def check(self) -> None:
        """Refuse where it can't run.

        Raises:
            ValueError: a package is missing, or this machine is the wrong one.
        """
        if self.packages:
            from ..deploy._common import require

            require(self.packages, self.extra)

    @abstractmethod
    def prepare(self, model: Any, image: Any, path: Path) -> None:
        """Write `model` for inputs like the tensor `image` to `path`.

        Raises:
            ValueError: it does not convert; the line names the operation and its layer.
        """

    @abstractmethod
    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        """What `prepare` wrote, ready to run."""

    @abstractmethod
    def version(self) -> str:
        """The runtime's version."""


class Eager(Backend):
    """PyTorch, operation by operation, images in NCHW."""

    name = "eager"

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        import torch

        try:
            torch.save(model, path)
        except Exception as error:  # pickle raises many kinds
            raise ValueError(f"{self.name} cannot take it: {' '.join(str(error).split())[:200]}") from None

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import torch

        torch.set_num_threads(threads)
        model, x = self._placed(torch.load(path, weights_only=False), torch.from_numpy(image))
        run = torch.no_grad()(model.__call__)
        return Loaded(lambda: run(x), lambda scores: scores.numpy())

    def _placed(self, model: Any, x: Any) -> tuple[Any, Any]:
        return model, x

    def version(self) -> str:
        return f"torch {version('torch')}"


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
            raise ValueError("torch.compile needs a C++ compiler on a CPU, e.g. Debian's package g++")

    def _placed(self, model: Any, x: Any) -> tuple[Any, Any]:
        import torch
        import torch._dynamo

        # networks of one class share their code: beyond this limit the next would run eagerly, without a word
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        return torch.compile(model), x


class OnnxRuntime(Backend):
    """ONNX Runtime's CPU kernels."""

    name = "onnxruntime"
    packages, extra = ("onnxruntime", "onnx", "onnxscript"), "onnx"

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

    def version(self) -> str:
        return f"onnxruntime {version('onnxruntime')}"


class ExecuTorch(Backend):
    """ExecuTorch, XNNPACK's kernels for what they cover and portable ones for the rest."""

    name = "executorch"
    packages, extra = ("executorch",), "executorch"

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        from ..deploy import executorch

        path.write_bytes(executorch.convert(model, image)[0])

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        portable_lib._unsafe_reset_threadpool(threads)
        method = Runtime.get().load_program(path).load_method("forward")
        inputs = [torch.from_numpy(image)]
        return Loaded(lambda: method.execute(inputs), lambda outputs: outputs[0].clone().numpy())

    def version(self) -> str:
        return f"executorch {version('executorch')}, XNNPACK"


class CoreML(Backend):
    """Core ML on a Mac, fp16, all compute units, timed by coremltools' own benchmarker (Core ML's own clock)."""

    name = "coreml"
    packages, extra = ("coremltools",), "deploy"
    precision, compute_units, takes_threads, tolerance = "fp16", "all", False, 0.05

    def check(self) -> None:
        if sys.platform != "darwin":
            raise ValueError(
                "Core ML runs on macOS only: bench it there, or import an Xcode report (launch.py bench --import FILE)"
            )
        super().check()

    def prepare(self, model: Any, image: Any, path: Path) -> None:
        from ..deploy import coreml

        coreml.convert(model, image).save(str(self._package(path)))

    def load(self, path: Path, image: np.ndarray, threads: int) -> Loaded:
        import coremltools
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        model = coremltools.models.MLModel(str(self._package(path)), compute_units=coremltools.ComputeUnit.ALL)
        inputs = {"images": image}
        return _LoadedCoreML(
            lambda: model.predict(inputs),
            lambda outputs: np.asarray(next(iter(outputs.values()))),
            MLModelBenchmarker(model),
            inputs,
        )

    @staticmethod
    def _package(path: Path) -> Path:
        return path.with_suffix(".mlpackage")  # coremltools insists

    def version(self) -> str:
        return f"coremltools {version('coremltools')}, macOS {platform.mac_ver()[0]}"


class _LoadedCoreML(Loaded):
    def __init__(self, call: Call, output: Callable[[Any], np.ndarray], benchmarker: Any, inputs: Any) -> None:
        super().__init__(call, output)
        self.benchmarker, self.inputs = benchmarker, inputs

    def time(self, calls: int) -> list[float]:
        done = self.benchmarker.benchmark_predict(inputs=self.inputs, iterations=calls, warmup=True)
        return list(asyncio.run(done).samples)


BACKENDS: dict[str, type[Backend]] = {
    kind.name: kind for kind in (Eager, ChannelsLast, Compiled, OnnxRuntime, ExecuTorch, CoreML)
}


def backend(name: str) -> Backend:
    """A runtime by its name.

    Raises:
        ValueError: no such runtime, or one that can't run here; the line says what it takes.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: one of {', '.join(BACKENDS)}, or all")
    found = BACKENDS[name]()
    found.check()
    return found


def device() -> str:
    """This machine's processor, as its vendor calls it, with the number of its CPUs."""
    name = platform.processor() or platform.machine()
    try:
        if sys.platform == "darwin":
            import subprocess

            name = subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
        else:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, ValueError):
        pass
    return f"{name}, {os.cpu_count()} CPUs"


def system() -> str:
    """The operating system and its version."""
    mac = platform.mac_ver()[0]
    return f"macOS {mac}" if mac else f"{platform.system()} {platform.release()}"
