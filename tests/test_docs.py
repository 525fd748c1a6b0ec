"""What the documents state about mixers, held against the code."""

import re
from fractions import Fraction
from math import log2
from pathlib import Path

import pytest

from metamixer.cost import count
from metamixer.mixer import build_mixer, resolve_mixer
from metamixer.operation import SLOTS, Site, operation_class
from metamixer.presets import BASELINES, PRESETS

TEXT = (Path(__file__).parent.parent / "docs" / "mixers.md").read_text()
ROWS = {
    cells[0]: cells[1:]
    for line in TEXT.splitlines()
    if line.startswith("| ")
    and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0] in PRESETS | BASELINES
}
LETTERS = {"D": "dynamic", "S": "static", "–": None}


def multiply_adds(formula: str, height: int, width: int, channels: int) -> Fraction:
    """Value of a sum such as `4NC² + 33NC`; H is the height, L the logarithm of N to base 2."""
    tokens = height * width
    values = {"N": tokens, "C": channels, "H": height, "L": int(log2(tokens))}
    total = Fraction(0)
    for term in formula.split(" + "):
        number, variables = re.fullmatch(r"([\d./]*)([NCHL²]*)", term).groups()
        value = Fraction(number or 1)
        for letter, square in re.findall(r"([NCHL])(²?)", variables):
            value *= values[letter] ** (2 if square else 1)
        total += value
    return total


def test_the_table_has_every_mixer():
    assert ROWS.keys() == (PRESETS | BASELINES).keys()


@pytest.mark.parametrize("name", PRESETS | BASELINES)
@pytest.mark.parametrize("height, width, channels", [(4, 8, 96), (16, 16, 192)])
def test_costs_are_those_that_are_counted(name, height, width, channels):
    mixer = build_mixer(resolve_mixer(name), Site(channels, height, width))
    formula = ROWS[name][2 if name in PRESETS else 0]
    assert multiply_adds(formula, height, width, channels) == count(mixer, (channels, height, width)).macs


@pytest.mark.parametrize("name", PRESETS)
def test_slots_are_those_of_the_preset(name):
    config = resolve_mixer(name)
    named = re.findall(r"`(\w+)`", ROWS[name][0])
    assert named == [getattr(config, slot).name for slot in SLOTS]
    sources = [operation_class(slot, getattr(config, slot)).source for slot in ("query_key", "coefficient_value")]
    assert [LETTERS[letter] for letter in ROWS[name][1].split("/")] == sources
