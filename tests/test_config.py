"""Configurations: what is refused, how it is said, overriding by key, and the hash."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from metamixer import CONFIGS, BackboneConfig, ConfigError, differences, digest, override, parse
from metamixer.config import digests_of, parse_assignments
from metamixer.recipes import DIGITS, FASHION_MNIST, SMALL, SMALL_DIGITS
from metamixer.training.data_config import DataConfig
from metamixer.training.recipe import Recipe
from metamixer.training.run_config import RunConfig

RUN = RunConfig(model=CONFIGS["ffnet_mini"], data=DIGITS, recipe=SMALL_DIGITS)
TOKEN = "model.stages.*.token_mixer"


def refused(changes, config=RUN):
    with pytest.raises(ConfigError) as caught:
        override(config, changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip_through_json():
    assert parse(RunConfig, json.loads(json.dumps(RUN.to_dict()))) == RUN


def test_wildcard_and_negative_index():
    changed = override(RUN, {f"{TOKEN}.activation": "relu", "model.stages.-1.depth": 2})
    assert {stage.token_mixer.activation.name for stage in changed.model.stages} == {"relu"}
    assert changed.model.stages[3].depth == 2


def test_differences_name_keys_and_both_values():
    changed = override(RUN, {"recipe.lr": 0.5, "model.stages.1.depth": 3})
    assert differences(RUN, changed) == {"recipe.lr": (RUN.recipe.lr, 0.5), "model.stages.1.depth": (1, 3)}


def test_hash_covers_every_value_and_no_spelling():
    assert digest(RUN) == digest(parse(RunConfig, RUN.to_dict()))
    assert digest(override(RUN, {"recipe.lr": 1})) == digest(override(RUN, {"recipe.lr": 1.0}))
    one_by_one = [{"recipe.lr": 0.1}, {"seed": 1}, {"data.image_size": 17}, {f"{TOKEN}.activation": "relu"}]
    hashes = {digest(RUN)} | {digest(override(RUN, change)) for change in one_by_one}
    assert len(hashes) == 5


def test_many_hashes_at_once_are_those_of_each():
    seeds = [0, 7, 10**6]
    expected = [digest(override(RUN, {"seed": seed})) for seed in seeds]
    assert digests_of(RUN.identity(), "seed", seeds) == expected


def test_hash_is_the_same_in_another_process():
    code = (
        "from metamixer import CONFIGS, digest\nfrom metamixer.recipes import DIGITS, SMALL_DIGITS\n"
        "from metamixer.training.run_config import RunConfig\n"
        "print(digest(RunConfig(model=CONFIGS['ffnet_mini'], data=DIGITS, recipe=SMALL_DIGITS)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == digest(RUN)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"recipe.learning_rate": 1e-3}, ["recipe.learning_rate", "no key 'learning_rate'", "lr"]),
        ({"model.stages.7.depth": 1}, ["neither an index below 4 nor '*'"]),
        ({"model.stages.--1.depth": 1}, ["'--1' is neither an index below 4 nor '*'"]),
        ({"recipe.lr.value": 1}, ["goes below"]),
        ({"recipe.lr": "fast"}, ["recipe.lr", "'fast'"]),
        ({"recipe.epochs": 2.5}, ["recipe.epochs"]),
        ({"recipe.epochs": True}, ["recipe.epochs"]),
        ({"recipe.lr": float("nan")}, ["recipe.lr"]),
        ({"recipe.batch_size": 7}, ["even"]),
        ({"recipe.warmup_epochs": 10}, ["fewer than epochs"]),
        ({"data.mean": [0.1, 0.2]}, ["one number for each of 1 channels"]),
        ({f"{TOKEN}.activation": "gelo"}, ["no activation operation 'gelo'", "gelu"]),
        ({f"{TOKEN}.query_key.kernal_size": 3}, ["no key 'kernal_size'", "kernel_size"]),
        (
            {f"{TOKEN}.query_key": {"name": "depthwise", "kernal_size": 3}},
            ["query_key operation 'depthwise'", "unknown key 'kernal_size'", "kernel_size"],
        ),
        (
            {f"{TOKEN}.query_key": {"name": "linear"}},
            ["query_key operation 'linear'", "missing key 'expansion'", "it takes"],
        ),
        (
            {f"{TOKEN}.query_key": {"name": "depthwise", "kernel_size": 4}},
            ["odd number", "got 4"],
        ),
        (
            {f"{TOKEN}.query_key": {"name": "depthwise", "kernel_size": 3, "small_kernel": 3}},
            ["small_kernel 3 must be smaller than kernel_size 3"],
        ),
        (
            {f"{TOKEN}.query_key": "scaled_dot"},
            ["makes coefficients as token pairs", "takes map", "matmul", "depthwise"],
        ),
        (
            {f"{TOKEN}.activation": "softmax"},
            ["'softmax'", "accepts", "map", "goes identity or double_norm or gelu", "goes scaled_dot or polarity"],
        ),
        ({TOKEN: {"query": "identity"}}, ["a mixer has the slots", "missing query_key"]),
        ({TOKEN: {"name": "poling"}}, ["no baseline operation 'poling'", "pooling"]),
    ],
)
def test_refusals_say_what_and_what_would_be_right(changes, parts):
    message = refused(changes)
    for part in parts:
        assert part in message


def test_unknown_keys_are_errors_at_every_level():
    for values in ({**RUN.to_dict(), "sede": 1}, {**RUN.to_dict(), "data": {**DIGITS.to_dict(), "crop": 1}}):
        with pytest.raises(ConfigError, match="unknown key"):
            parse(RunConfig, values)


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        RUN.recipe.lr = 1.0


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3), (".001", 0.001), ("5.", 5.0), ("+5", 5), ("-2", -2), ("None", None), ("null", None),
        ("True", True), ("0.5,1.0", [0.5, 1.0]), ("0.5, 1", [0.5, 1]), ('{"name": "gelu"}', {"name": "gelu"}),
        ("digits", "digits"), ("007", "007"), ("1_000", 1000), ("inf", "inf"), ("a,b", "a,b"), ("1,b", "1,b"),
        ("1.5.2", "1.5.2"), ('"2024"', "2024"), ("", ""), ("{[1]: 2}", "{[1]: 2}"),
    ],
)  # fmt: skip
def test_values_of_the_command_line(text, value):
    (found,) = parse_assignments([f"key={text}"]).values()
    assert found == value and type(found) is type(value)


def test_command_line_values_fit_their_fields():
    given = ["recipe.lr=.001", "recipe.rand_augment=None", "recipe.crop_scale=0.5,1.0", "data.skip_broken=True"]
    changed = override(RUN, parse_assignments(given))
    assert changed.recipe.lr == 0.001 and changed.recipe.rand_augment is None and changed.data.skip_broken
    assert changed.recipe.crop_scale == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"data.root: should be text, got the number 2024: .* write '\"2024\"'"):
        override(RUN, parse_assignments(["data.root=2024"]))
    assert override(RUN, parse_assignments(['data.root="2024"'])).data.root == "2024"


@pytest.mark.parametrize(
    "texts, message", [(["recipe.lr"], "KEY=VALUE"), (["seed=1", "seed=2"], "seed is given twice")]
)
def test_what_is_no_assignment(texts, message):
    with pytest.raises(ConfigError, match=message):
        parse_assignments(texts)


def test_kernels_larger_than_their_map_are_noticed():
    # 12 px: maps of 12, 6, 3, 2; a 7×7 kernel reaches 2·3 - 1 = 5 and 2·2 - 1 = 3 positions in the last two
    assert RUN.warnings() == [
        "stage 3: a 7×7 kernel on a map 3 wide acts as 5×5",
        "stage 4: a 7×7 kernel on a map 2 wide acts as 3×3",
    ]
    assert override(RUN, {"data.image_size": 28}).warnings() == []


def test_a_rectangle_is_written_and_read_again_without_a_warning():
    wide = override(DIGITS, {"image_size": [24, 36]})
    with warnings.catch_warnings(action="error"):
        assert wide.image_size == (24, 36) and wide.to_dict()["image_size"] == [24, 36]
        assert parse(DataConfig, wide.to_dict()) == wide and digest(wide) != digest(DIGITS)


def test_descriptions_of_data_and_recipe_are_strict():
    with pytest.raises(ConfigError, match="missing key 'num_classes'"):
        parse(DataConfig, {"name": "digits", "channels": 1, "image_size": 8, "mean": [0.1], "std": [0.1]})
    # classes are kept as int16
    assert override(DIGITS, {"num_classes": np.iinfo(np.int16).max + 1}).num_classes == 32768
    with pytest.raises(ConfigError, match="num_classes: input should be less than or equal to 32768, got 32769"):
        override(DIGITS, {"num_classes": 32769})
    with pytest.raises(ConfigError, match=r"min_lr .* must not exceed lr"):
        parse(Recipe, {"lr": 1e-6})
    with pytest.raises(ConfigError):
        parse(BackboneConfig, {"stages": []})


def test_an_average_that_cannot_have_forgotten_its_start_is_pointed_out():
    data = override(FASHION_MNIST, {"train_samples": 2048})
    run = RunConfig(
        model=CONFIGS["ffnet_mini"], data=data, recipe=override(SMALL, {"batch_size": 64, "ema_decay": 0.98})
    )
    lagging = [line for line in run.warnings() if "EMA" in line]
    # 32 steps an epoch, 5 epochs: 0.98^160 = 0.039
    assert lagging == [
        "after 160 steps an EMA of 0.98 still holds 4e-02 of its start, which spoils BatchNorm's small "
        "variances: lower recipe.ema_decay or set it to null"
    ]
    for changes in ({"recipe.ema_decay": None}, {"recipe.ema_decay": 0.9}, {"recipe.epochs": 25}):
        assert not any("EMA" in line for line in override(run, changes).warnings())
