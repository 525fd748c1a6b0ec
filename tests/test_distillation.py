"""Distillation: losses against closed forms, which teachers are taken and refused, and what a cache may not change."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from small import RUN, STEPS
from test_training import Killed, at_steps, outcome, same

from metamixer import ConfigError, digest, override
from metamixer.training import checkpoint, distill
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
        ("test_resnet", "test_resnet", {"num_classes": 12}, "are for 10 classes, data.num_classes is 12: set "),
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


@pytest.fixture
def asked(monkeypatch):
    """How often a teacher was asked."""
    calls = []
    real = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, images: calls.append(1) or real(self, images))
    return calls


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_cached_answers_change_nothing(finished, tmp_path, asked, kind):
    config = distilled(finished, kind=kind)
    train(config, tmp_path / "uncached", "cpu")
    train(config, tmp_path / "first", "cpu", teacher_cache=tmp_path / "cache")
    assert len(asked) == 2 * STEPS * 2
    train(config, tmp_path / "second", "cpu", teacher_cache=tmp_path / "cache")
    assert len(asked) == 2 * STEPS * 2
    expected = outcome(tmp_path / "uncached")
    assert same(outcome(tmp_path / "first"), expected) and same(outcome(tmp_path / "second"), expected)
    files = sorted(path.name for path in (tmp_path / "cache").rglob("*.npy"))
    assert files == ["0.npy", "1.npy", "2.npy"]


def test_students_share_a_cache_and_other_images_do_not(finished, tmp_path, asked):
    train(distilled(finished), tmp_path / "first", "cpu", teacher_cache=tmp_path / "cache")
    del asked[:]
    student = {"model.stages.*.token_mixer.activation": "relu", "recipe.lr": 1e-3, "recipe.drop_path_rate": 0.0}
    train(override(distilled(finished), student), tmp_path / "second", "cpu", teacher_cache=tmp_path / "cache")
    assert not asked
    for i, changes in enumerate(
        ({"seed": 1}, {"recipe.flip_prob": 0.5}, {"recipe.mixup_alpha": 0.5}, {"data.val_samples": 63})
    ):
        config = override(distilled(finished), {"recipe.epochs": 2, **changes})
        train(config, tmp_path / f"other{i}", "cpu", teacher_cache=tmp_path / "cache")
        assert len(asked) == (i + 1) * 2 * 2 * 5, changes


def test_answers_that_would_fill_the_disk_are_not_kept(finished, tmp_path, caplog):
    """ImageNet for 320 epochs: 2 bytes an image for classes, 4000 for logits."""
    changes = {"recipe.epochs": 300, "recipe.cooldown_epochs": 20, "recipe.batch_size": 1024, "data.num_classes": 1000}
    hard, soft = (override(distilled(finished, kind=kind), changes) for kind in ("hard", "soft"))
    images = 320 * 1251 * 1024
    assert [distill.TeacherCache.size(config, 1251) for config in (hard, soft)] == [2 * images, 4000 * images]
    soft = override(distilled(finished, kind="soft"), {"recipe.epochs": 300, "recipe.batch_size": 1024})
    learners = [Learner(soft, CPU, steps, teacher_cache=tmp_path) for steps in (349, 1251)]  # 4 bytes a class
    assert [learner.cache is None for learner in learners] == [False, True]
    line = "no teacher cache: the answers of 300 epochs would take 14.3 GiB, the limit is 4 GiB"
    assert [record.getMessage() for record in caplog.records] == [line]


def test_a_torn_cache_is_written_again(finished, tmp_path, asked):
    train(distilled(finished), tmp_path / "first", "cpu", teacher_cache=tmp_path / "cache")
    file = next((tmp_path / "cache").rglob("1.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    del asked[:]
    train(distilled(finished), tmp_path / "second", "cpu", teacher_cache=tmp_path / "cache")
    assert len(asked) == 2 * 5 and file.read_bytes() == whole
    assert same(outcome(tmp_path / "second"), outcome(tmp_path / "first"))


def test_killed_while_it_fills_the_cache(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.training.train.CHECKPOINT_SECONDS", -1.0)

    def kill():
        raise Killed

    config = distilled(finished)
    train(config, tmp_path / "whole", "cpu")
    at_steps(monkeypatch, [3, 8], kill)
    for _ in range(2):
        with pytest.raises(Killed):
            train(config, tmp_path / "run", "cpu", teacher_cache=tmp_path / "cache")
    train(config, tmp_path / "run", "cpu", teacher_cache=tmp_path / "cache")
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
    # epochs that were begun twice have no whole file
    assert [path.name for path in (tmp_path / "cache").rglob("*.npy")] == ["2.npy"]


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
    assert losses["tuned"] < losses["plain"] and len(set(losses.values())) == 3


def test_what_a_cache_is_known_by_covers_all_that_makes_an_image():
    """A new field of the recipe has to be put on one side or the other."""
    without_a_part_in_it = {
        "epochs", "warmup_epochs", "cooldown_epochs", "schedule", "lr", "warmup_lr", "min_lr", "lr_batch",
        "weight_decay", "weight_decay_end", "layer_scale_decay", "drop_path_rate", "label_smoothing", "ema_decay",
        "batch_norm", "init", "compile", "distillation",
    }  # fmt: skip
    assert set(RUN.recipe.to_dict()) - set(distill._SEEN) == without_a_part_in_it
