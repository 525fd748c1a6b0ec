"""What is written for other runtimes: run against eager where it can be, read back where it can't; and refusals."""

import io
import logging
from collections import OrderedDict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from small import MODEL, RUN
from torch import nn

from metamixer import Backbone, digest, isotropic
from metamixer.architecture import Asked
from metamixer.config import ConfigError, parse
from metamixer.cost_table import print_costs
from metamixer.dense import build_network
from metamixer.dense.forecast import ForecasterConfig
from metamixer.dense.superresolution import ffnet_sr
from metamixer.deploy import coreml, executorch, onnx
from metamixer.deploy.common import NotConvertible
from metamixer.deploy.export import SUFFIXES, class_labels, export
from metamixer.latency.runtimes import find_runtime
from metamixer.networks import Network, find_network
from metamixer.training import checkpoint
from metamixer.training.folder import RunFolder

CLASSES = 5
BLOCK = {"depth": 1, "token_mixer": "ffnified_attention", "channel_mixer": "ffn"}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def needs(package, extra):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs the {extra} extra")


@pytest.fixture
def network():
    model = Backbone(MODEL, num_classes=CLASSES, img_size=16).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # so that folding has something to do
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return Network("tiny", model, (3, 16, 16), MEAN, STD)


def scores(network, images):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        return network.model((images - mean) / std)


@needs("coremltools", "deploy")
@needs("onnxruntime", "onnx")
def test_pictures_and_series_go_out_as_numbers(tmp_path):
    sr = Network("sr", build_network(ffnet_sr(2, 16), Asked(3, 3, (12, 16))).eval(), (3, 12, 16), MEAN, STD)
    written = export(sr, "onnx", tmp_path / "sr.onnx")
    assert find_runtime("onnxruntime").run(written.path, torch.rand(1, 3, 12, 16)).shape == (1, 3, 24, 32)
    assert "numbers" in export(sr, "coreml", tmp_path / "sr.mlpackage").checks[0]
    config = parse(ForecasterConfig, {"blocks": {**BLOCK, "width": 2 * 8}, "dim": 8})
    forecaster = Network("f", build_network(config, Asked(24, 2, (1, 48))).eval(), (2, 1, 48), MEAN[:2], STD[:2])
    written = export(forecaster, "onnx", tmp_path / "f.onnx")
    assert find_runtime("onnxruntime").run(written.path, torch.rand(1, 2, 1, 48)).shape == (1, 2, 1, 24)
    console = Console(record=True, width=160, file=io.StringIO())
    print_costs(forecaster, console=console)
    text = console.export_text()
    assert "token: query" in text and "blocks.0" in text


@pytest.mark.parametrize(
    "format, runtime",
    [
        pytest.param("executorch", "executorch", marks=needs("executorch", "executorch")),
        pytest.param("onnx", "onnxruntime", marks=needs("onnxruntime", "onnx")),
    ],
)
def test_what_runs_here_equals_eager(network, tmp_path, format, runtime):
    images, level = torch.rand(1, 3, 16, 16), logging.root.level
    written = export(network, format, tmp_path / f"net{SUFFIXES[format]}")
    assert logging.root.level == level, "what is logged afterwards would be lost"
    found = find_runtime(runtime).run(written.path, images)
    torch.testing.assert_close(found, scores(network, images), rtol=1e-4, atol=1e-5)
    assert written.size == written.path.stat().st_size
    assert "top-1 agrees on 8" in written.checks[0]


@needs("coremltools", "deploy")
def test_core_ml_takes_images_and_gives_classes(network, tmp_path):
    from coremltools.models import MLModel

    names = ["ankle", "boot", "coat", "dress", "elbow"]
    written = export(replace(network, classes=names), "coreml", tmp_path / "net.mlpackage")
    program = MLModel(str(written.path), skip_model_load=True)
    spec = program.get_spec()
    (pixels,) = spec.description.input
    assert (pixels.name, pixels.type.imageType.width, pixels.type.imageType.height) == ("images", 16, 16)
    kinds = {output.type.WhichOneof("Type") for output in spec.description.output}
    assert kinds == {"stringType", "dictionaryType"} and spec.description.predictedFeatureName == "classLabel"
    assert all(name.encode() in spec.SerializeToString() for name in names)
    assert written.checks[-1] == "not run: Xcode or a phone runs it"
    # one convolution for each of the folded network: 2 in the stem, 6 a block, 2 a downsampling
    assert coreml.operations(program)["conv"] == 2 + 4 * 6 + 3 * 2


@needs("coremltools", "deploy")
@needs("onnxruntime", "onnx")
def test_a_network_that_answers_for_each_cell_of_a_rectangle(tmp_path):
    """Its scores go out as they are: no labels, no softmax."""
    cells = isotropic(1, 32, "attention", patch=4)
    model = Backbone(cells, num_classes=7, in_chans=2, img_size=(16, 24), global_pool="").eval()
    network = Network("cells", model, (2, 16, 24), MEAN[:2], STD[:2])
    written = export(network, "onnx", tmp_path / "net.onnx")
    assert float(written.checks[0].partition("at most ")[2].split()[0]) < 1e-4 and "top-1" not in written.checks[0]
    assert find_runtime("onnxruntime").run(written.path, torch.rand(1, 2, 16, 24)).shape == (1, 7, 4, 6)
    first, operations, last = export(network, "coreml", tmp_path / "net.mlpackage").checks
    assert first.startswith("input 'images': numbers; outputs ") and "softmax (1×)" in operations  # attention's
    assert last == "not run: Xcode or a phone runs it"


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(coreml, marks=needs("coremltools", "deploy")),
        pytest.param(executorch, marks=needs("executorch", "executorch")),
        pytest.param(onnx, marks=needs("onnx", "onnx")),
    ],
)
def test_what_does_not_convert_names_operation_and_layer(module):
    network = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 3, 1), waves=Bessel()))
    with pytest.raises(NotConvertible) as error:
        module.convert(network, torch.rand(1, 3, 8, 8))
    assert "bessel_j0" in error.value.operation and error.value.layer == "waves"
    assert "\n" not in str(error.value)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(executorch, marks=needs("executorch", "executorch")),
        pytest.param(onnx, marks=needs("onnx", "onnx")),
    ],
)
def test_what_cannot_be_captured_says_where_and_why(module):
    with pytest.raises(NotConvertible, match=r"test_deploy\.py:\d+: .*data-dependent") as error:
        module.convert(nn.Sequential(Branch()), torch.rand(1, 3, 8, 8))
    assert "\n" not in str(error.value)


class Wrong(nn.Module):
    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor="a")


@needs("coremltools", "deploy")
def test_what_cannot_be_traced_says_where_and_which_types():
    with pytest.raises(NotConvertible, match=r"test_deploy\.py:\d+: TypeError: .*invalid types: .*str"):
        coreml.convert(nn.Sequential(Wrong()), torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("format, extra", [("coreml", "deploy"), ("executorch", "executorch"), ("onnx", "onnx")])
def test_a_missing_package_names_its_extra(network, tmp_path, monkeypatch, format, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"is not installed: uv pip install -e '\.\[{extra}\]'"):
        export(network, format, tmp_path / f"net{SUFFIXES[format]}")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "tflite"}, "format 'tflite': one of coreml, executorch, onnx"),
        ({"format": "onnx", "out": Path("net.pte")}, r"ends in \.onnx"),
        ({"format": "onnx", "out": Path("nowhere/net.onnx")}, "no folder nowhere"),
    ],
)
def test_refusals(network, arguments, message):
    with pytest.raises(ConfigError, match=message):
        export(network, **arguments)


def test_a_folder_in_the_files_place_is_refused_before_converting(network, tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(ConfigError, match="this is a folder"):
        export(network, "onnx", tmp_path / "net.onnx")


def test_a_resolution_that_a_network_does_not_run_on_is_refused_in_a_line():
    assert find_network("levit_128s", 224).input_size == (3, 224, 224)
    with pytest.raises(ConfigError, match="timm model 'levit_128s' does not run at 250×250 px") as error:
        find_network("levit_128s", 250)
    assert "\n" not in str(error.value)


def test_mixers_alone_are_not_exported():
    with pytest.raises(ConfigError, match="'xca' is a mixer"):
        export(find_network("xca", 8), "onnx")


def test_labels(network):
    assert class_labels(network) == ["0", "1", "2", "3", "4"]
    imagenet = class_labels(Network("n", Backbone(MODEL, num_classes=1000), (3, 16, 16)))
    assert len(set(imagenet)) == 1000 and "n01440764 tench" in imagenet[0]


def test_a_runs_reported_weights(tmp_path):
    raw, average = RUN.build(), RUN.build()
    folder = RunFolder(tmp_path / digest(RUN))
    folder.create(RUN)
    names = [f"kind {i}" for i in range(10)]
    checkpoint.save(folder, {"model": raw.state_dict(), "ema": average.state_dict(), "classes": names})
    with pytest.raises(ConfigError, match="has not finished"):
        find_network(str(folder.path), trained=True)
    for reported, model in (("raw", raw), ("ema", average)):
        folder.write("result.json", {"state": "done", "weights": reported})
        found = find_network(str(folder.path), trained=True)
        assert torch.equal(found.model.head.fc.weight, model.head.fc.weight)
    assert (found.input_size, found.mean) == ((1, 12, 12), RUN.data.mean)
    assert class_labels(found) == names
