"""Forward and backward of presets against their authors' formulas in plain PyTorch (`authors.py`), interleaved.

Ours is in the memory format of training, channels-last; the formulas have torch's own, as their authors.

    python benchmarks/presets.py                   # all, at 14×14×384 and 56×56×64; fifteen minutes on one quiet core
    python benchmarks/presets.py mala rala         # some
    python benchmarks/presets.py --gpu             # on a GPU

On a CPU a time is CPU time of one thread; on a GPU it is wall time, with synchronisation before and after, and
convolutions and matrix products use TF32. The ratio is the plain time over ours: above 1 ours is faster. Ratios are
taken within a round. The outputs of both are compared first.
"""

import argparse
import statistics
import sys
import time
from copy import deepcopy

import torch
from authors import AUTHORS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from metamixer import Site, build_mixer, resolve_mixer

# channels and side of the map: images of a batch on a CPU, on a GPU. With fewer than 16, one thread gets other kernels.
SIZES = {(384, 14): (16, 128), (64, 56): (16, 32)}
TOKENS = {"delta_net": 256, "gated_delta_net": 256}  # at most
# these compare all pairs of 56×56 tokens, for which a CPU has time and memory for 4 images
PAIRS = ("gated_attention", "rmt", "differential_attention", "shvit")


def seconds(network: nn.Module, x: Tensor) -> float:
    """Of one forward and backward pass."""
    gpu = x.is_cuda
    for tensor in (x, *network.parameters()):
        tensor.grad = None
    if gpu:
        torch.cuda.synchronize()
    clock = time.perf_counter if gpu else time.process_time
    begun = clock()
    network(x).sum().backward()
    if gpu:
        torch.cuda.synchronize()
    return clock() - begun


def compare(name: str, channels: int, side: int, images: int, rounds: int, device: str) -> list[str]:
    torch.manual_seed(0)
    mixer = build_mixer(resolve_mixer(name), Site(channels, side, side)).to(device)
    x = torch.randn(images, channels, side, side, device=device, requires_grad=True)
    plain = deepcopy(AUTHORS[name](mixer))
    mixer = mixer.to(memory_format=torch.channels_last)
    own = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.no_grad():
        y, expected = mixer(own), plain(x)
    assert (y - expected).norm() < 1e-2 * expected.norm(), f"{name} differs from its formula"
    pairs = []
    for turn in range(rounds + 2):  # who comes first finds the allocator in another state
        order = ((mixer, own), (plain, x)) if turn % 2 else ((plain, x), (mixer, own))
        first, second = (seconds(*each) for each in order)
        pairs.append((first, second) if turn % 2 else (second, first))
    pairs = pairs[2:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    spread = f"{ratios[len(ratios) // 4]:.2f} – {ratios[-1 - len(ratios) // 4]:.2f}"
    return [name, str(images), f"{1e3 * ours:.2f}", f"{1e3 * theirs:.2f}", f"{statistics.median(ratios):.2f}", spread]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=", ".join(AUTHORS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.presets) - AUTHORS.keys():
        parser.error(f"no formula for {', '.join(sorted(unknown))}; there are {', '.join(AUTHORS)}")
    if arguments.gpu and not torch.cuda.is_available():
        sys.exit("no GPU here")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")  # as convolutions have it
    device = "cuda" if arguments.gpu else "cpu"
    for (channels, side), batches in SIZES.items():
        fitting = [n for n in arguments.presets or AUTHORS if side**2 <= TOKENS.get(n, side**2)]
        table = Table("preset", "images", "ours, ms", "plain, ms", "ratio (median)", "middle half")
        for name in track(fitting, f"{side}×{side}×{channels}", transient=True):
            images = 4 if device == "cpu" and side == 56 and name in PAIRS else batches[arguments.gpu]
            table.add_row(*compare(name, channels, side, images, arguments.rounds, device))
        table.title = f"{side}×{side}×{channels}"
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
