"""A user's file in a run: known by its code, copied into the run's folder, and never in the way of another version."""

import json
import shutil

import pytest
import torch
from small import RUN
from test_commands import launch

from metamixer import ConfigError, digest, override, plugins
from metamixer.operation import REGISTRY
from metamixer.plugins import code_digest, load_module
from metamixer.training.folder import RunFolder
from metamixer.training.train import train
from sweeps import Grid, Variant, make_plan
from sweeps.grid import LoadedGrid

KEY = "model.stages.*.token_mixer.activation"
CODE = """
from metamixer import Activation, register

@register
class Part(Activation):
    name = "part"
    def forward(self, scores):
        return scores / {by}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_op.py"
    path.write_text(CODE.format(by=2))
    return path


def forget():
    """As in a new process."""
    plugins._loaded.clear()
    REGISTRY["activation"].pop("part", None)


def using(file):
    load_module(file)
    return override(RUN, {KEY: "part"})


def test_comments_formatting_and_place_do_not_count_but_code_does(file, tmp_path):
    first = digest(using(file))
    edits = {
        "a comment": CODE.format(by=2).replace("    def", "    # halves\n    def"),
        "a docstring": CODE.format(by=2).replace("    name", '    """Half of the scores."""\n\n    name'),
        "formatting": CODE.format(by=2).replace("scores / 2", "(scores\n            / 2)").replace('"part"', "'part'"),
    }
    for text in edits.values():
        file.write_text(text)
        assert digest(using(file)) == first
    (tmp_path / "elsewhere").mkdir()
    forget()
    assert digest(using(shutil.move(file, tmp_path / "elsewhere" / "renamed.py"))) == first
    forget()
    file.write_text(CODE.format(by=4))
    assert digest(using(file)) != first


def test_only_runs_that_use_an_operation_know_of_it(file, tmp_path):
    variants = {"gelu": Variant(), "part": Variant(changes={KEY: "part"})}
    plain = Grid(bases={"a": RUN}, base="gelu", variants={"gelu": variants["gelu"]}, seeds=(0,))
    grid = Grid(bases={"a": RUN}, base="gelu", variants=variants, seeds=(0,), modules=(str(file),))
    gelu, part = make_plan(LoadedGrid("mine", "?", grid), tmp_path / "runs").runs
    assert gelu.config.modules == () and gelu.hash == plain.runs()[0].hash
    assert [(module.name, module.digest) for module in part.config.modules] == [("my_op.py", code_digest(file))]


def test_a_run_goes_on_from_its_own_copy_when_the_file_is_edited_or_gone(file, tmp_path, monkeypatch):
    config = using(file)
    train(config, tmp_path / "whole", "cpu")
    whole = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)["model"]
    folder = RunFolder(tmp_path / "moved")
    folder.create(config)
    assert str(tmp_path) not in (folder.path / "config.json").read_text()
    file.write_text(CODE.format(by=1000))
    forget()
    found = folder.config()
    assert found == config and digest(found) == digest(config)
    train(found, folder.path, "cpu")
    model = torch.load(folder.path / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(whole[name], model[name]) for name in whole)
    file.unlink()
    for command in ("cost", "evaluate"):
        assert launch(command, folder.path).stdout
    assert json.loads((folder.path / "config.json").read_text())["config"]["modules"][0]["name"] == "my_op.py"


def test_two_versions_in_one_process_do_not_mix(file, tmp_path):
    RunFolder(tmp_path / "old").create(using(file))
    forget()
    file.write_text(CODE.format(by=4))
    new = using(file)
    old = RunFolder(tmp_path / "old").config()
    ones = torch.ones(1, 1, 1, 1)

    def part(config):
        return next(m for m in config.build().modules() if type(m).__name__ == "Part")(ones).item()

    assert (part(new), part(old), part(override(new, {"seed": 1})), part(override(old, {"seed": 1}))) == (
        *(0.25, 0.5, 0.25, 0.5),
    )


def test_a_copy_that_is_edited_or_gone_is_named(file, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(using(file))
    (copy,) = (folder.path / "modules").iterdir()
    for spoil, message in (
        (lambda: copy.write_text(CODE.format(by=3)), f"{copy} was edited"),
        (copy.unlink, f"{copy} is missing, and with it the run's copy of my_op.py"),
    ):
        forget()
        spoil()
        with pytest.raises(ConfigError) as error:
            folder.config()
        assert message in str(error.value)


@pytest.mark.parametrize("source", ["gone.py", "no_such_module", "a_folder"])
def test_no_such_module(source, tmp_path):
    (tmp_path / "a_folder").mkdir()
    with pytest.raises(ConfigError, match=f"{source}.*: give the path of a .py file"):
        load_module(tmp_path / source)
