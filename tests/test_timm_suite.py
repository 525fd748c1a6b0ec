"""timm's own test suite, unmodified, on the registered models (a small one; `-k ffnet` by hand for all)."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def suite(pytestconfig):
    """`tests/test_models.py` of the installed timm's source distribution, fetched once into pytest's cache."""
    version = timm.__version__
    folder = pytestconfig.cache.mkdir("timm")
    file = folder / f"timm-{version}" / "tests" / "test_models.py"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "-d", str(folder), f"timm=={version}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"timm's source distribution is out of reach: {done.stderr.strip()[-200:]}")
        with tarfile.open(folder / f"timm-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return file


@pytest.mark.parametrize("name", ["ffnet_mini", "isotropic_mini"])
def test_timms_suite_passes_on_our_small_models(suite, name):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    # what lists pretrained weights wants to download them
    selection = f"{name} and not pretrained"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "timm_suite_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(suite), "-k", selection], env=environment, capture_output=True, text=True, cwd=suite.parent
    )
    assert done.returncode == 0 and "11 passed" in done.stdout, done.stdout[-3000:]
