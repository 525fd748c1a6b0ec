"""A search whose study is in PostgreSQL, on a private server from Debian's packages."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from small_search import write_search
from test_search import all_compete, stand_in, work

from metamixer import ConfigError
from sweeps.search import worker as search_worker
from sweeps.search.confirm import confirm_search
from sweeps.search.files import load_search
from sweeps.search.launch import outcome
from sweeps.search.study import create_study, search_folder
from sweeps.search.trials import Owner, Trials, has_finished


def binaries():
    """The folder of initdb and pg_ctl; Debian keeps them out of the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """URL of an empty database, reached by a socket in a folder of its own."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    if binaries() is None:
        pytest.skip("needs Debian's package postgresql")
    as_root = os.geteuid() == 0
    if as_root and subprocess.run(["id", "postgres"], capture_output=True).returncode:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/metamixer-pg.XXXXXX"], check=True, capture_output=True,
                                 text=True).stdout.strip())  # fmt: skip
    folder.chmod(0o755)
    if as_root:
        shutil.chown(folder, "postgres")

    def run(command, *arguments):
        line = [str(binaries() / command), *map(str, arguments)]
        line = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *line] if as_root else line
        subprocess.run(line, check=True, cwd=folder, timeout=120, stdout=subprocess.DEVNULL)

    run("initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def test_a_search_in_postgresql_survives_a_dead_worker_and_counts_exactly(postgres, tmp_path, monkeypatch):
    root = tmp_path / "runs"
    loaded = load_search(str(write_search(tmp_path, trials=8))).define()
    create_study(root, loaded, postgres)
    folder = search_folder(root, "tiny@tiny")
    assert not (folder / "journal.log").exists()
    trials = Trials(root, folder, Owner.here("me"))
    trials.prepare(8)
    Trials(root, folder, Owner.here("dead")).claim()  # it holds no lock
    assert all_compete(tmp_path, root, 3) == [0] * 3
    found = trials.all()
    assert sum(map(has_finished, found)) == 8 and {outcome(trial) for trial in found} <= {"done", "too costly", "lost"}
    assert outcome(found[0]) == "lost" and any(trial.user_attrs.get("again") == 0 for trial in found)
    # all was stopped: the same study goes on, from the folder alone
    create_study(root, loaded, None)
    monkeypatch.setattr(search_worker, "train", stand_in())
    again = Trials(root, folder, Owner.here("later"))
    again.prepare(9)
    work(again)
    assert sum(map(has_finished, again.all())) == 9
    grid = confirm_search(root, loaded, 1, None, tmp_path / "confirm.py")
    assert "trial_" in grid.read_text()
    with pytest.raises(ConfigError, match="a study does not move"):
        create_study(root, loaded, "journal")


def test_a_database_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    loaded = load_search(str(write_search(tmp_path))).define()
    with pytest.raises(ConfigError) as error:
        create_study(tmp_path / "runs", loaded, f"postgresql://postgres@/postgres?host={tmp_path}")
    assert "\n" not in str(error.value) and "No such file" in str(error.value)
