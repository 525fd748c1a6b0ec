"""Distillation: losses against closed forms, which teachers are taken and refused."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from small import RUN
from test_training import outcome

from metamixer import ConfigError, digest, override
from metamixer.training import checkpoint
from metamixer.training.data import Data
from metamixer.training.data_config import DataConfig
from metamixer.training.distill import Teacher, distillation_loss
from metamixer.training.learner import Learner
from metamixer.training.recipe import Distillation
from metamixer.training.train import train
from sweeps import Grid, Variant

CPU = torch.device("cpu")
COLOUR = DataConfig(
    name="folder", root="x", num_classes=10, channels=3, image_size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)


def logits(seed, shape=(7, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def softmax(values):
    powers = np.exp(values.double().numpy())
    return powers / powers.sum(1, keepdims=True)


def test_hard_is_the_cross_entropy_to_the_teachers_class():
    student, teacher = logits(0), logits(1)
    taught = softmax(teacher).argmax(1)
    expected = -np.mean([math.log(softmax(student)[i, c]) for i, c in enumerate(taught)])
    assert distillation_loss(student, teacher.argmax(1)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_is_the_divergence_over_batch_and_classes(temperature):
    student, teacher = logits(0), logits(1)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum() / (7 * 5)
    assert distillation_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-7)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "teacher"
    train(override(RUN, {"seed": 7}), path)
    return path


def distilled(path, **rest):
    return override(RUN, {"recipe.distillation": {"teacher": str(path), **rest}, "recipe.micro_batch": 16})


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_whole_loss_of_a_pass(finished, kind):
    """(1 - alpha) · base + alpha · distillation, of what teacher and student say of the same mixed images."""
    config = distilled(finished, kind=kind, alpha=0.3)
    data = Data(config.data, config.recipe, config.seed)
    learner = Learner(config, CPU, data.steps)
    seen = {}
    for name, model in (("student", learner.model), ("teacher", learner.teacher.model)):
        model.register_forward_hook(
            lambda _, given, gave, name=name: seen.setdefault(name, (given[0].clone(), gave)) and None
        )
    targets = []
    base = learner.loss.forward
    learner.loss.forward = lambda x, y: targets.append((x, y)) or base(x, y)
    losses = []
    objective = learner._objective
    learner._objective = lambda *a: losses.append(objective(*a)) or losses[-1]
    learner.train_step(data.batches(0))
    (images, student), (same_images, teacher) = seen["student"], seen["teacher"]
    assert torch.equal(images, same_images) and len(images) == 16
    q, p = softmax(student.detach()), softmax(teacher)
    soft_targets = targets[0][1].double().numpy()
    plain = -(soft_targets * np.log(q)).sum(1).mean()
    if kind == "hard":
        taught = -np.log(q[np.arange(16), p.argmax(1)]).mean()
    else:
        taught = (p * np.log(p / q)).sum() / (16 * 10)
    assert losses[0].item() == pytest.approx(0.7 * plain + 0.3 * taught, rel=1e-5)


def test_a_finished_run_teaches_frozen_with_the_weights_that_it_reports(finished):
    config = distilled(finished)
    assert config.recipe.distillation.weights.average
    learner = Learner(config, CPU, 5)
    stored = checkpoint.read(finished / "last.pt")["ema"]
    data = Data(config.data, config.recipe, config.seed)
    for _ in range(2):
        learner.train_step(data.batches(0))
        teacher = learner.teacher.model
        assert all(torch.equal(value, stored[name]) for name, value in teacher.state_dict().items())
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    other = override(config, {"recipe.distillation": {"teacher": str(finished), "weights": {
        "source": str(finished / "best.pt")}}})  # fmt: skip
    best = checkpoint.read(finished / "best.pt")["model"]
    taught = Teacher(other.recipe.distillation, config.data, CPU).model.state_dict()
    assert all(torch.equal(value, best[name]) for name, value in taught.items())


def test_a_teacher_of_timm_sees_its_own_normalisation(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "teacher.pth")
    distillation = Distillation(teacher="test_resnet", kind="soft", weights={"source": str(tmp_path / "teacher.pth")})
    teacher = Teacher(distillation, COLOUR, CPU)
    levels = torch.rand(2, 3, 64, 64)

    def normalised(mean, std):
        return (levels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    with torch.no_grad():
        expected = model(normalised(model.pretrained_cfg["mean"], model.pretrained_cfg["std"]))
    torch.testing.assert_close(teacher(normalised(COLOUR.mean, COLOUR.std)), expected, rtol=1e-3, atol=1e-4)


def of_timm(tmp_path, name, state, **changes):
    torch.save({"model": state}, tmp_path / "teacher.pth")
    distillation = Distillation(teacher=name, weights={"source": str(tmp_path / "teacher.pth")})
    Teacher(distillation, COLOUR.model_copy(update=changes), CPU)


@pytest.mark.parametrize(
    "name, of, changes, message",
    [
        ("test_resnet", "test_resnet", {"num_classes": 12}, "knows 10 classes, data.num_classes is 12: use another"),
        ("test_resnet", "test_convnext", {}, "timm model 'test_resnet': cannot load its weights"),
        ("test_resnet", "test_resnet", {"channels": 1, "mean": (0.5,), "std": (0.2,)},
         "takes 3 channels, data.channels is 1"),
        ("test_vit", "test_vit", {}, "takes images of 160 px only, data.image_size is 64"),
    ],
)  # fmt: skip
def test_teachers_of_timm_that_do_not_fit(tmp_path, name, of, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        of_timm(tmp_path, name, timm.create_model(of, num_classes=10).state_dict(), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.image_size": 16}, "was trained with data.image_size 12, this run has 16"),
        ({"data.num_classes": 11}, "are for 10 classes, data.num_classes is 11"),
    ],
)
def test_runs_that_do_not_fit_as_teachers(finished, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(override(distilled(finished), changes), tmp_path / "run", "cpu")
    assert "\n" not in str(caught.value)


def test_what_is_refused_before_anything_starts(finished, tmp_path):
    with pytest.raises(ConfigError, match="neither a timm model's name nor the folder of a finished run"):
        distilled(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"state": "failed"}))
    with pytest.raises(ConfigError, match="neither a timm model's name nor the folder of a finished run"):
        distilled(tmp_path)
    with pytest.raises(ConfigError, match=r"is a run, but weights .* are not its"):
        override(distilled(finished), {"recipe.distillation.teacher": str(tmp_path)})


def test_a_teacher_is_known_by_its_weights_not_by_where_it_lies(finished, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "result.json", "last.pt", "best.pt"):
        (moved / name).write_bytes((finished / name).read_bytes())
    assert digest(distilled(finished)) == digest(distilled(moved)) != digest(distilled(finished, kind="soft"))


def test_a_grid_of_a_plain_a_distilled_and_a_fine_tuned_run(finished, tmp_path):
    grid = Grid(
        bases={"digits": override(RUN, {"recipe.epochs": 2})},
        base="plain",
        variants={
            "plain": Variant(),
            "distilled": Variant(changes={"recipe.distillation": {"teacher": str(finished), "kind": "soft"}}),
            "tuned": Variant(
                changes={"initial": {"source": str(finished / "last.pt"), "average": True}, "data.image_size": 16}
            ),
        },
        seeds=(0,),
    )
    runs = grid.runs()
    assert len({run.hash for run in runs}) == 3
    losses = {}
    for run in runs:
        assert train(run.config, tmp_path / run.hash, "cpu")["state"] == "done"
        losses[run.variant] = outcome(tmp_path / run.hash)["rows"][0]["train_loss"]
    assert len(set(losses.values())) == 3
    tuned = next(run.config for run in runs if run.variant == "tuned")
    start = Learner(tuned, CPU, 1).model.state_dict()
    average = checkpoint.read(finished / "last.pt")["ema"]
    assert all(torch.equal(value, average[name]) for name, value in start.items())
