"""What an optimizer's step is made of: learning rate, weight decay, average, accumulation, against closed forms."""

import math

import pytest
import torch
from small import RUN
from torch._inductor import config as inductor_config

from metamixer import ConfigError, digest, override
from metamixer.recipes import named_run
from metamixer.training.data import Data
from metamixer.training.folder import RunFolder
from metamixer.training.learner import Learner
from metamixer.training.optimize import Schedule, build_optimizer
from metamixer.training.recipe import Recipe
from metamixer.training.train import train

CPU = torch.device("cpu")
STEPS = 10  # in an epoch


def rates(recipe, steps=STEPS):
    """Learning rate and weight decay of the two groups at every step of a recipe."""
    optimizer = build_optimizer(torch.nn.Linear(2, 2), recipe)
    schedule = Schedule(optimizer, recipe, steps)
    for step in range(recipe.total_epochs * steps):
        schedule.set(step)
        spared, decaying = optimizer.param_groups
        assert spared["lr"] == decaying["lr"] and spared["weight_decay"] == 0
        yield step, decaying["lr"], decaying["weight_decay"]


def cosine(start, end, done):
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_learning_rate_against_the_closed_form(schedule):
    recipe = Recipe(
        epochs=6, warmup_epochs=2, cooldown_epochs=2, lr=1e-3, min_lr=1e-4, warmup_lr=1e-5, schedule=schedule
    )
    curve = cosine if schedule == "cosine" else lambda start, end, done: end + (start - end) * (1 - done)
    for step, lr, weight_decay in rates(recipe):
        if step < 20:
            expected = 1e-5 + (1e-3 - 1e-5) * step / 20
        else:
            expected = curve(1e-3, 1e-4, step / 60) if step < 60 else 1e-4
        assert lr == pytest.approx(expected, rel=1e-9), step
        assert weight_decay == 0.05


def test_the_published_recipe_at_given_epochs():
    """ffnet_1 on ImageNet, 1251 steps an epoch: warm-up from 1e-6, 1e-3 cosine to 1e-5, 20 epochs at it."""
    at = {step: lr for step, lr, _ in rates(Recipe(), 1251)}
    assert len(at) == 320 * 1251
    assert at[0] == 1e-6 and at[5 * 1251] == pytest.approx(cosine(1e-3, 1e-5, 5 / 300))
    assert at[150 * 1251] == pytest.approx((1e-3 + 1e-5) / 2)
    assert at[300 * 1251] == at[320 * 1251 - 1] == pytest.approx(1e-5)


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_constant_schedule(warmup):
    recipe = Recipe(
        epochs=200, warmup_epochs=warmup, cooldown_epochs=0, schedule="constant", lr=5e-6, warmup_lr=1e-6, batch_size=8
    )
    for step, lr, weight_decay in rates(recipe, 2):
        expected = 1e-6 + (5e-6 - 1e-6) * step / 4 if step < 2 * warmup else 5e-6
        assert lr == pytest.approx(expected, rel=1e-12) and weight_decay == 0.05


def test_weight_decay_follows_a_cosine_to_its_end():
    for step, _, weight_decay in rates(Recipe(epochs=6, cooldown_epochs=2, weight_decay_end=0.005)):
        assert weight_decay == pytest.approx(cosine(0.05, 0.005, step / 60) if step < 60 else 0.005, rel=1e-12)


def test_learning_rates_are_scaled_only_when_asked():
    changes = {"batch_size": 256, "epochs": 2, "warmup_epochs": 1, "cooldown_epochs": 1}
    for (step, plain, _), (_, scaled, _) in zip(
        rates(Recipe(**changes)), rates(Recipe(**changes, lr_batch=1024)), strict=True
    ):
        assert scaled == pytest.approx(plain / 4, rel=1e-12), step
    assert next(rates(Recipe(**changes)))[1] == 1e-6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"micro_batch": 12}, "batch_size 32 must be a multiple of micro_batch 12"),
        ({"micro_batch": 1}, "greater than 1"),
        ({"schedule": "constant", "cooldown_epochs": 3}, "'constant' takes cooldown_epochs 0, got 3"),
        ({"schedule": "linear"}, "'cosine', 'poly' or 'constant'"),
        ({"min_lr": 1.0}, "min_lr 1.0 must not exceed lr"),
        ({"distillation": {"teacher": "resnet10t", "temperature": 2.0}}, "hard distillation has no temperature"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(RUN, {f"recipe.{key}": value for key, value in changes.items()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decayed", [True, False])
def test_weight_decay_on_layer_scale_is_a_choice(decayed):
    config = override(RUN, {"model.layer_scale": 1e-6, "recipe.layer_scale_decay": decayed})
    learner = Learner(config, CPU, STEPS)
    names = {id(p): n for n, p in learner.model.named_parameters()}
    decays = {names[id(p)]: g["weight_decay"] for g in learner.optimizer.param_groups for p in g["params"]}
    assert {n for n, d in decays.items() if d == 0.05 and n.endswith("scale")} == (
        {n for n in decays if n.endswith("_scale.scale")} if decayed else set()
    )
    assert all(d == (0.05 if n.endswith("weight") and learner.model.get_parameter(n).ndim > 1 else 0)
               for n, d in decays.items() if not n.endswith("scale"))  # fmt: skip


def test_a_step_of_four_passes_against_four_plain_backward_passes():
    """One step of SGD by hand from the mean of the passes' losses, each pass by itself in train mode."""
    plain = {
        "recipe.mixup_alpha": 0.0,
        "recipe.cutmix_alpha": 0.0,
        "recipe.drop_path_rate": 0.0,
        "recipe.micro_batch": 8,
    }
    config = override(RUN, plain)
    data = Data(config.data, config.recipe, config.seed)
    learner = Learner(config, CPU, data.steps)
    reference = config.build()
    reference.train()
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=config.recipe.label_smoothing)
    batches = list(data.batches(0))[:4]
    assert [len(classes) for _, classes in batches] == [8] * 4
    loss = sum(criterion(reference(images), classes) for images, classes in batches) / 4
    loss.backward()
    learner.train_step(data.batches(0))
    assert learner.mean_loss() == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(learner.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_pass_draws_from_its_own_number():
    """Passes of a step are mixed differently, and each the same way again whatever pass came before it."""
    config = override(RUN, {"recipe.micro_batch": 8})
    data = Data(config.data, config.recipe, config.seed)
    learner = Learner(config, CPU, data.steps)
    batches = list(data.batches(0))

    def mixed(batch, number):
        images, classes = batch
        return learner._next(iter([(images.clone(), classes)]), number)

    first = mixed(batches[0], 0)
    assert not torch.equal(first[0], mixed(batches[0], 1)[0])
    assert all(map(torch.equal, first, mixed(batches[0], 0)))


def test_compiled_training_is_the_same_computation(monkeypatch):
    monkeypatch.setattr("metamixer.training.learner.has_cpp_compiler", lambda: True)  # the backend here needs none
    config = override(RUN, {"recipe.compile": True, "recipe.drop_path_rate": 0.0})
    learners = [Learner(c, CPU, STEPS) for c in (override(config, {"recipe.compile": False}), config)]
    data = Data(config.data, config.recipe, config.seed)
    assert isinstance(learners[1].forward, torch._dynamo.eval_frame.OptimizedModule)
    learners[1].forward = torch.compile(learners[1].model, backend="eager")  # inductor takes a minute to start
    for learner in learners:
        batches = data.batches(0)
        learner.train_step(batches), learner.train_step(batches)
    assert learners[0].mean_loss() == pytest.approx(learners[1].mean_loss(), rel=1e-5)
    assert learners[0].model.state_dict().keys() == learners[1].model.state_dict().keys()


def test_no_compiler_is_the_machines_fault_and_not_the_runs(tmp_path):
    message = r"^recipe\.compile: no working C\+\+ compiler; install one.*or set recipe\.compile=false$"
    with inductor_config.patch("cpp.cxx", ("/nonexistent/g++",)), pytest.raises(ConfigError, match=message):
        train(override(RUN, {"recipe.compile": True}), tmp_path / "run", "cpu")
    assert RunFolder(tmp_path / "run").result() is None


def test_bfloat16_trains_in_bfloat16_and_keeps_float32_weights():
    config = override(RUN, {"recipe.precision": "bfloat16"})
    learner = Learner(config, CPU, STEPS)
    seen = []
    learner.model.head.fc.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    learner.train_step(Data(config.data, config.recipe, config.seed).batches(0))
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert math.isfinite(learner.mean_loss())


def test_float16_is_refused_where_gradients_would_not_be_scaled():
    with pytest.raises(ConfigError, match="'float16' is for GPUs; on a CPU take float32 or bfloat16"):
        Learner(override(RUN, {"recipe.precision": "float16"}), CPU, STEPS)


@pytest.mark.parametrize("off, left, share", [("mixup", "cutmix", 0.5), ("cutmix", "mixup", 0.3)])
def test_without_one_kind_of_mixing_the_other_keeps_its_share(off, left, share):
    """Counted over 2,000 passes; a plain pass keeps its images."""
    recipe = {"mixup_alpha": 0.8, "mixup_prob": 0.3, "cutmix_alpha": 1.0, "cutmix_prob": 0.5, f"{off}_alpha": 0.0}
    learner = Learner(override(RUN, {f"recipe.{key}": value for key, value in recipe.items()}), CPU, 1)
    images, kinds = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 12, 12), []
    for learner.step in range(2000):
        mixed, _ = learner._next(iter([(images.clone(), torch.arange(4))]), 0)
        inside = len(mixed[0].unique()) > 1  # a rectangle of another image, or the whole of both
        kinds.append("none" if torch.equal(mixed, images) else "cutmix" if inside else "mixup")
    assert off not in kinds or kinds.count(off) < 100  # a rectangle over the whole image, or none of it
    assert kinds.count(left) / 2000 == pytest.approx(share, abs=0.06)


def test_shares_of_mixing_beyond_all_passes_are_refused():
    with pytest.raises(ConfigError, match=r"mixup_prob 0\.7 and cutmix_prob 0\.5: together at most 1"):
        override(RUN, {"recipe.mixup_prob": 0.7})
    assert override(RUN, {"recipe.mixup_prob": 1.0, "recipe.cutmix_alpha": 0.0}).recipe.mix_shares == (1.0, 0.0)


@pytest.mark.parametrize("changes, ends", [({}, 0.0), ({"recipe.weight_decay_end": 0.1}, 0.1)])
def test_a_run_without_weight_decay_at_its_start(tmp_path, changes, ends):
    config = override(RUN, {"recipe.weight_decay": 0.0, "recipe.epochs": 2, **changes})
    assert train(config, tmp_path / "run", "cpu")["state"] == "done"
    optimizer = build_optimizer(config.build(), config.recipe)
    schedule = Schedule(optimizer, config.recipe, 5)
    schedule.set(10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.0, ends])


def test_learning_rates_fall_from_the_decoder_down_by_layers():
    config = override(named_run("garments"), {"recipe.layer_decay": 0.5, "recipe.head_lr_scale": 10.0})
    model = config.build()
    optimizer = build_optimizer(model, config.recipe)
    schedule = Schedule(optimizer, config.recipe, STEPS)
    plain = build_optimizer(model, named_run("garments").recipe)
    assert all("lr_scale" not in group for group in plain.param_groups)
    decays = {p for group in plain.param_groups for p in group["params"] if group["decays"]}
    # depths 1, 2, 1: four blocks between stem and decoder
    scales = {"stem": 1 / 32, "stages.0": 1 / 16, "stages.1.downsample": 1 / 8, "stages.1.blocks.0": 1 / 8,
              "stages.1.blocks.1": 1 / 4, "stages.2": 1 / 2}  # fmt: skip
    names = {parameter: name for name, parameter in model.named_parameters()}
    step, rate = next((step, rate) for step, rate, _ in rates(named_run("garments").recipe) if step == 3 * STEPS)
    schedule.set(step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(parameter)
            own = [scale for part, scale in scales.items() if name.startswith(f"backbone.{part}")]
            assert group["lr"] == pytest.approx(rate * (own[0] if own else 10))
            assert bool(own) == name.startswith("backbone") and group["decays"] == (parameter in decays)
    assert not names


def test_betas_are_adams_and_other_runs_keep_their_hash():
    recipe = override(RUN.recipe, {"betas": [0.9, 0.99]})
    assert build_optimizer(torch.nn.Linear(2, 2), recipe).param_groups[0]["betas"] == (0.9, 0.99)
    for key, value in {"betas": [0.9, 0.99], "layer_decay": 0.9, "head_lr_scale": 10.0}.items():
        assert key not in RUN.identity()["recipe"]
        assert digest(override(RUN, {f"recipe.{key}": value})) != digest(RUN)


def test_a_network_without_a_head_is_refused():
    with pytest.raises(ConfigError, match=r"recipe.head_lr_scale: .*set it to 1"):
        build_optimizer(torch.nn.Linear(2, 2), override(RUN.recipe, {"head_lr_scale": 0.5}))
