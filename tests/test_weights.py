"""Weights that a run starts from: what is taken, what it is known by, what is refused in a line."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small import RUN
from test_training import outcome
from timm.models import adapt_input_conv, reparameterize_model

from metamixer import ConfigError, digest, override, parse
from metamixer.backbone import Backbone
from metamixer.ffnet import CONFIGS, released_name
from metamixer.recipes import IMAGENET, named_run
from metamixer.training import checkpoint, weights
from metamixer.training.learner import Learner
from metamixer.training.recipe import Weights
from metamixer.training.run_config import RunConfig
from metamixer.training.train import train

CPU = torch.device("cpu")
TIED = {"model.stages.1.token_mixer": {"name": "random_mixing"}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    train(RUN, path)
    return path


def started(changes):
    return Learner(override(RUN, changes), CPU, 5)


def from_file(path, **rest):
    return {"initial": {"source": str(path), **rest}}


@pytest.mark.parametrize("average", [False, True])
def test_fine_tuning_starts_from_the_weights_alone(finished, average):
    learner = started({**from_file(finished / "last.pt", average=average), "data.image_size": 16, "seed": 3})
    stored = checkpoint.read(finished / "last.pt")["ema" if average else "model"]
    assert all(torch.equal(value, stored[name]) for name, value in learner.model.state_dict().items())
    assert all(torch.equal(value, stored[name]) for name, value in learner.ema.module.state_dict().items())
    assert learner.step == 0 and not learner.optimizer.state


def test_a_fine_tuned_run_trains_resumes_and_differs_from_one_that_starts_anew(finished, tmp_path):
    changes = {"recipe.epochs": 1, "recipe.warmup_epochs": 0, "recipe.lr": 1e-4, "recipe.schedule": "constant"}
    anew = override(RUN, changes)
    tuned = override(anew, from_file(finished / "last.pt", average=True))
    for name, config in (("anew", anew), ("tuned", tuned)):
        train(config, tmp_path / name, "cpu")
    losses = {name: outcome(tmp_path / name)["rows"][0]["train_loss"] for name in ("anew", "tuned")}
    # three epochs were trained before
    assert losses["tuned"] < outcome(finished)["rows"][1]["train_loss"] < losses["anew"]


@pytest.mark.parametrize(
    "wrap", ["model", "state_dict", "net", "lightning", "bare", "module", "namespace", "legacy", "safetensors"]
)
def test_the_forms_in_which_weights_are_found(tmp_path, wrap):
    state = RUN.build().state_dict()
    path = tmp_path / ("x.safetensors" if wrap == "safetensors" else "x.pth.tar")
    if wrap == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        content = {
            "bare": state,
            "lightning": {"state_dict": {f"model.{name}": value for name, value in state.items()}},
            "module": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
            "namespace": {"state_dict": state, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        }
        content["legacy"] = content["namespace"]
        # torch's only format before 1.6
        torch.save(content.get(wrap, {wrap: state}), path, _use_new_zipfile_serialization=wrap != "legacy")
    found = weights.read(Weights(source=str(path)))
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_released_checkpoint_goes_into_its_network(tmp_path):
    shapes = json.loads((Path(__file__).parent / "golden" / "ffnet_state_dict.json").read_text())["ffnet_1"]
    rng = np.random.default_rng(0)
    released = {name: torch.from_numpy(np.asarray(rng.random(shape, np.float32))) for name, shape in shapes.items()}
    torch.save({"state_dict": released, "args": argparse.Namespace(model="ffnet_1")}, tmp_path / "ffnet_1.pth.tar")
    config = RunConfig(
        model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=RUN.recipe,
        initial=Weights(source=str(tmp_path / "ffnet_1.pth.tar")),
    )  # fmt: skip
    model = config.build()
    weights.start_from(model, config)
    own = model.state_dict()
    for name, value in released.items():
        assert torch.equal(own[released_name(name)], value.to(own[released_name(name)].dtype)), name


@pytest.mark.parametrize("backbone", ["ours", "test_resnet", "test_convnext"])
def test_a_classifiers_weights_go_into_a_segmenters_backbone(backbone, tmp_path):
    """Grey ones into a network for colour, as timm adapts a first convolution."""
    run = named_run("garments")
    if backbone == "ours":
        classifier = Backbone(run.model.backbone, 10, 1, img_size=48, seed=5)
    else:
        run, classifier = override(run, {"model.backbone": backbone}), timm.create_model(backbone, in_chans=1)
    torch.save(classifier.state_dict(), tmp_path / "weights.pt")
    run = override(run, {"initial": {"source": str(tmp_path / "weights.pt")}})
    model, fresh = run.build(), run.build().state_dict()
    weights.start_from(model, run)
    theirs = iter(classifier.state_dict().items())
    stem = weights.first_convolution(model)
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):  # in the order of the classifier's, whose head is left
            own, given = next((n, v) for n, v in theirs if n.rpartition(".")[2] == name.rpartition(".")[2])
            expected = given if name != stem else adapt_input_conv(3, given, base_chans=1)
            torch.testing.assert_close(value, expected, msg=f"{name} is not {own}")
        else:
            assert torch.equal(value, fresh[name]), name
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    again = override(run, {"initial": {"source": str(tmp_path / "whole.pt")}, "seed": 7})
    other = again.build()
    weights.start_from(other, again)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_weights_are_known_by_what_they_hold_not_by_where_they_lie(tmp_path):
    for name, seed in (("a.pt", 0), ("b.pt", 0), ("c.pt", 1)):
        torch.manual_seed(seed)
        torch.save({"model": {"x": torch.randn(3)}}, tmp_path / name)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content)  # an archive holds its own name
    a, b, c = (override(RUN, from_file(tmp_path / name)) for name in ("a.pt", "b.pt", "c.pt"))
    assert digest(a) == digest(b) != digest(c)
    assert digest(a) != digest(RUN) != digest(override(a, {"initial.average": True}))
    stored = json.loads(json.dumps(a.to_dict()))
    (tmp_path / "a.pt").unlink()
    assert parse(RunConfig, stored) == a


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "have changed since the run was planned"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_a_file_that_changed_after_planning(finished, tmp_path, change, message):
    path = tmp_path / "copy.pt"
    path.write_bytes((finished / "last.pt").read_bytes())
    config = override(RUN, from_file(path))
    change(path)
    with pytest.raises(ConfigError, match=message) as caught:
        train(config, tmp_path / "run", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.stages.3.width": 32}, r"another model: '.*' has shape"),
        ({"model.stages.1.token_mixer": {"name": "identity"}}, "another model: it has 'stages.1"),
    ],
)
def test_weights_that_do_not_fit(finished, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        started({**from_file(finished / "last.pt"), **changes})
    assert "\n" not in str(caught.value)


def test_fine_tuning_to_other_classes_starts_with_a_new_head(finished, caplog):
    """The body is the weights', the head what it is in a run of this seed that starts from nothing."""
    tuned, anew = (started({"data.num_classes": 3, **more}) for more in (from_file(finished / "last.pt"), {}))
    stored = checkpoint.read(finished / "last.pt")["model"]
    for name, value in tuned.model.state_dict().items():
        wanted = anew.model.state_dict() if name.startswith("head.fc.") else stored
        assert torch.equal(value, wanted[name]), name
    assert "a head for 10 classes: that of 3 classes starts anew" in caplog.text


def test_weights_without_a_head(tmp_path, caplog):
    state = {name: value for name, value in RUN.build().state_dict().items() if not name.startswith("head.fc.")}
    torch.save(state, tmp_path / "x.pt")
    found = started(from_file(tmp_path / "x.pt")).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert "no head: that of 10 classes starts anew" in caplog.text


def test_weights_for_colour_go_on_with_grey_images(tmp_path, caplog):
    """A grey image gives what it gave as three equal channels."""
    rgb = {"data.channels": 3, "data.mean": [0.3] * 3, "data.std": [0.3] * 3}
    model = override(RUN, rgb).build().eval()
    torch.save(model.state_dict(), tmp_path / "rgb.pt")
    grey = started(from_file(tmp_path / "rgb.pt")).model.eval()
    images = torch.randn(2, 1, 12, 12)
    assert torch.allclose(grey(images), model(images.expand(-1, 3, -1, -1)), atol=1e-5)
    assert "are for 3 channels" in caplog.text


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda model: {**model.state_dict(), "head.fc.bias": torch.full((10,), torch.nan)}, "'head.fc.bias' is not"),
        (lambda model: reparameterize_model(model).state_dict(), "are folded, or another model's: 19 norms"),
        (lambda model: model, r"more than weights and plain values \(metamixer\.backbone\.Backbone\); save"),
        (lambda model: {"loss": np.float64(1.0), **model.state_dict()}, r"values \(numpy\S*scalar\); save"),
    ],
    ids=["nan", "folded", "pickled", "numpy"],
)
def test_weights_that_can_not_be_meant_are_refused_with_the_reason(tmp_path, spoil, message):
    torch.save(spoil(RUN.build().eval()), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=message) as caught:
        started(from_file(tmp_path / "x.pt"))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_mixer_tied_to_the_image_size_keeps_it(tmp_path):
    torch.save(override(RUN, TIED).build().state_dict(), tmp_path / "tied.pt")
    started({**TIED, **from_file(tmp_path / "tied.pt")})
    with pytest.raises(ConfigError, match=r"'stages\.1.*' has shape .*tied to the image size") as caught:
        started({**TIED, **from_file(tmp_path / "tied.pt"), "data.image_size": 16})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 1}, {"model": {"x": "y"}}, [1, 2], {}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no weights in it"):
        weights.read(Weights(source=str(tmp_path / "x.pt")))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_torn_file(finished, tmp_path, name):
    (tmp_path / name).write_bytes((finished / "last.pt").read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"x\.\w+: not a whole checkpoint \(.*; use another one") as caught:
        weights.read(Weights(source=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])  # in the names, and in the weights
def test_a_torn_file_of_the_legacy_format(tmp_path, part):
    path = tmp_path / "x.pth"
    torch.save({"state_dict": RUN.build().state_dict()}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ConfigError, match=r"x\.pth: not a whole checkpoint \(.*; use another one") as caught:
        weights.read(Weights(source=str(path)))
    assert "\n" not in str(caught.value)


def test_no_average_where_there_is_none(tmp_path):
    torch.save({"model": RUN.build().state_dict()}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no average in it"):
        weights.read(Weights(source=str(tmp_path / "x.pt"), average=True))
    with pytest.raises(ConfigError, match="'ffnet_1' is a timm model, whose weights have no average"):
        override(RUN, {"initial": {"source": "ffnet_1", "average": True}})


def test_a_file_that_begins_like_a_timm_model_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'ffnet_1\.pth\.tar': no such file"):
        parse(Weights, {"source": "ffnet_1.pth.tar"})
    torch.save({"state_dict": {"x": torch.ones(3)}}, "ffnet_1.pth.tar")
    assert weights.read(Weights(source="ffnet_1.pth.tar"))["x"].tolist() == [1, 1, 1]
    assert Weights(source="ffnet_1.in1k").digest is None


def test_timm_models():
    with pytest.raises(ConfigError, match="timm model 'ffnet_mini': cannot load its weights") as caught:
        weights.read(Weights(source="ffnet_mini"))  # there are none
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="'ffnet_l': no such file, nor a timm model's name"):
        override(RUN, {"initial": {"source": "ffnet_l"}})
