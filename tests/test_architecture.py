"""What may import what: the arrows of docs/architecture.md, and the files that it names."""

import ast
import json
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("metamixer", "sweeps", "ablations", "analysis", "launch")
ALLOWED = {
    "metamixer": set(),
    "sweeps": {"metamixer"},
    "ablations": {"metamixer", "sweeps"},
    "analysis": {"metamixer"},
    "launch": {"metamixer", "sweeps", "analysis"},
}
READERS = {"sweeps.trials"}  # reads what a search wrote: analysis has no second reader
FILES = [path for room in ROOMS for path in [*(ROOT / room).rglob("*.py"), ROOT / f"{room}.py"] if path.is_file()]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path, everywhere=True):
    """(module, name) of each import of the project's own; only those that run at import time if not `everywhere`."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (f"{source}.{alias.name}", None) if f"{source}.{alias.name}" in MODULES else (source, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        later = isinstance(node, ast.FunctionDef)
        later = later or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        if everywhere or not later:
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    found = visit(ast.parse(path.read_text()))
    return [(module, name) for module, name in found if module.split(".")[0] in ROOMS]


def test_imports_follow_the_arrows():
    wrong = []
    for path in FILES:
        room = module_of(path).split(".")[0]
        fine = {module for module in MODULES if module.split(".")[0] in ALLOWED[room] | {room}}
        fine |= READERS if room == "analysis" else set()
        wrong += [(module_of(path), module) for module, _ in imports(path) if module not in fine]
    assert not wrong


def test_nothing_private_crosses_a_room():
    wrong = []
    for path in FILES:
        for module, name in imports(path):
            private = any(part.startswith("_") for part in [*module.split("."), name or ""])
            if private and module.split(".")[0] != module_of(path).split(".")[0]:
                wrong.append((module_of(path), module, name))
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    graph = {module_of(path): {m for m, _ in imports(path, everywhere=False)} - {module_of(path)} for path in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("module", ["metamixer.presets", "metamixer.ops", "metamixer.mixer", "metamixer.backbone"])
def test_any_module_may_be_imported_first(module):
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)


def test_the_page_names_files_that_exist():
    rooms = re.findall(r"^\| (`\w+/.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.M)
    assert len(rooms) > 20
    for names in rooms:
        first, *others = re.findall(r"`([\w/.]+)`", names)
        room = ROOT / first.split("/")[0]
        assert (ROOT / first).exists() and all(list(room.rglob(name.rstrip("/"))) for name in others), names


def test_notebooks_call_analysis_alone():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        lines = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(lines)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in {"metamixer", "sweeps", "ablations"}, path.name


def test_the_core_needs_no_launcher():
    """`metamixer` is useful alone: nothing in it names SLURM's or Optuna's packages."""
    for path in (ROOT / "metamixer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"submitit", "optuna"} & {name.split(".")[0] for name in names}, path
