"""What is written for other runtimes: run against eager where it can be, read back where it can't; and refusals."""

import logging
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from small import MODEL, RUN
from torch import nn

from metamixer import Backbone, digest
from metamixer.config import ConfigError
from metamixer.deploy import coreml, executorch, onnx
from metamixer.deploy.common import NotConvertible
from metamixer.deploy.export import SUFFIXES, class_labels, export
from metamixer.networks import Network, find_network
from metamixer.training import checkpoint
from metamixer.training.folder import RunFolder

CLASSES = 5
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


@pytest.mark.parametrize(
    "format, module",
    [
        pytest.param("executorch", executorch, marks=needs("executorch", "executorch")),
        pytest.param("onnx", onnx, marks=needs("onnxruntime", "onnx")),
    ],
)
def test_what_runs_here_equals_eager(network, tmp_path, format, module):
    images, level = torch.rand(1, 3, 16, 16), logging.root.level
    written = export(network, format, tmp_path / f"net{SUFFIXES[format]}")
    assert logging.root.level == level, "what is logged afterwards would be lost"
    torch.testing.assert_close(module.run(written.path, images), scores(network, images), rtol=1e-4, atol=1e-5)
    assert written.size == written.path.stat().st_size
    assert "top-1 agrees on 8" in written.checks[0]


@needs("coremltools", "deploy")
def test_core_ml_takes_images_and_gives_classes(network, tmp_path):
    names = ["ankle", "boot", "coat", "dress", "elbow"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    written = export(network, "coreml", tmp_path / "net.mlpackage", labels=tmp_path / "labels.txt")
    spec = coreml.read(written.path).get_spec()
    (pixels,) = spec.description.input
    assert (pixels.name, pixels.type.imageType.width, pixels.type.imageType.height) == ("images", 16, 16)
    kinds = {output.type.WhichOneof("Type") for output in spec.description.output}
    assert kinds == {"stringType", "dictionaryType"} and spec.description.predictedFeatureName == "classLabel"
    assert all(name.encode() in spec.SerializeToString() for name in names)
    assert written.checks[-1] == "not run: only macOS runs Core ML"
    # one convolution for each of the folded network: 2 in the stem, 6 a block, 2 a downsampling
    assert coreml.operations(coreml.read(written.path))["conv"] == 2 + 4 * 6 + 3 * 2


@needs("coremltools", "deploy")
@pytest.mark.parametrize("channels", [1, 3])
def test_on_a_mac_core_ml_is_compared_with_eager(tmp_path, monkeypatch, channels):
    """Core ML's place is taken by eager PyTorch, which gets the image and answers by label as Core ML does."""
    from coremltools.models import MLModel

    mean, std = MEAN[:channels], STD[:channels]
    model = Backbone(MODEL, num_classes=CLASSES, in_chans=channels, img_size=16).eval()
    shift, asked = 0.0, []

    def predict(self, inputs):
        (pixels,) = inputs.values()
        asked.append((*inputs, pixels.size, pixels.mode))
        x = torch.from_numpy(np.array(pixels)).reshape(16, 16, channels).permute(2, 0, 1) / 255
        x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        with torch.no_grad():
            found = model(x[None])[0].softmax(0) + shift
        by_label = {str(i): float(found[i]) for i in reversed(range(CLASSES))}
        return {self.get_spec().description.predictedProbabilitiesName: by_label, "classLabel": "0"}

    monkeypatch.setattr(MLModel, "predict", predict)
    monkeypatch.setattr(coreml, "runs_here", lambda: True)
    network = Network("tiny", model, (channels, 16, 16), mean, std)
    said = export(network, "coreml", tmp_path / "net.mlpackage").checks[-1]
    assert said.startswith("against eager, not folded, on 8 images: top-1 agrees on 8, probabilities differ")
    assert float(said.partition("at most ")[2].split()[0]) < 1e-5
    assert asked == [("images", (16, 16), "L" if channels == 1 else "RGB")] * 8
    shift = torch.tensor([0.25, 0, 0, 0, 0])
    assert "differ by at most 2.5e-01" in export(network, "coreml", tmp_path / "net.mlpackage").checks[-1]


@needs("coremltools", "deploy")
@needs("executorch", "executorch")
def test_executorch_hands_the_whole_network_to_core_ml(network, tmp_path):
    written = export(network, "executorch", tmp_path / "net.pte", delegate="coreml")
    assert b"CoreMLBackend" in written.path.read_bytes() and b"XnnpackBackend" not in written.path.read_bytes()
    assert written.checks[1] == "outside Core ML, on portable kernels: nothing"
    if not executorch.runs_here("coreml"):
        assert written.checks[0].startswith("not run: this machine's ExecuTorch has no Core ML")
    with pytest.raises(ConfigError, match="delegate 'vulkan': one of xnnpack, coreml"):
        export(network, "executorch", tmp_path / "net.pte", delegate="vulkan")


@needs("coremltools", "deploy")
def test_compressed_weights():
    layer = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False))
    program = coreml.convert(layer, torch.rand(1, 64, 4, 4))
    weight = layer[0].weight.detach().numpy().reshape(64, 64)
    linear = _weight(coreml.compress(program, "int8"))
    # symmetric, a scale for each channel: off by half a step at most (and fp16's rounding)
    steps = np.abs(weight).max(1, keepdims=True) / 127
    assert (np.abs(linear.reshape(64, 64) - weight) <= 0.51 * steps + 1e-4).all()
    palette = _weight(coreml.compress(program, "palette4"))
    assert len(np.unique(palette)) == 16
    with pytest.raises(ConfigError, match="compression 'int3': one of int8, palette4"):
        coreml.compress(program, "int3")


def _weight(program):
    """The one weight of a program, as it computes with it."""
    from coremltools.optimize import coreml as optimize

    (found,) = optimize.get_weights_metadata(optimize.decompress_weights(program), 16).values()
    return np.asarray(found.val)


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
        ({"format": "onnx", "quantize": "int8"}, "quantize: only for coreml"),
        ({"format": "onnx", "labels": Path("names")}, "labels: only for coreml"),
        ({"format": "onnx", "delegate": "coreml"}, "delegate: only for executorch"),
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
    with pytest.raises(ConfigError, match="resolution 250: timm model 'levit_128s' does not run") as error:
        find_network("levit_128s", 250)
    assert "\n" not in str(error.value)


def test_mixers_alone_are_not_exported():
    with pytest.raises(ConfigError, match="'xca' is a mixer"):
        export(find_network("xca", 8), "onnx")


def test_labels(network, tmp_path):
    file = tmp_path / "names"
    assert class_labels(network, None) == ["0", "1", "2", "3", "4"]
    file.write_text("a\nb")
    with pytest.raises(ConfigError, match="2 lines, 2 of them different, for 5 classes"):
        class_labels(network, file)
    file.write_text("a\na\nb\nc\nd")
    with pytest.raises(ConfigError, match="5 lines, 4 of them different"):
        class_labels(network, file)
    file.write_bytes("a\nb\nc\nd\né".encode("utf-8-sig"))  # as Windows writes it
    assert class_labels(network, file) == ["a", "b", "c", "d", "é"]
    imagenet = class_labels(Network("n", Backbone(MODEL, num_classes=1000), (3, 16, 16)), None)
    assert len(set(imagenet)) == 1000 and "n01440764 tench" in imagenet[0]
    with pytest.raises(ConfigError, match="no_such"):
        class_labels(network, tmp_path / "no_such")


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
    assert class_labels(found, None) == names
