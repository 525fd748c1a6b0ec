"""JSON lines survive a kill within a row, rows of another version and several writers."""

import json
import multiprocessing

import pytest

from metamixer import jsonl


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert jsonl.read(path) == []
    jsonl.append(path, {"a": 1}, {"a": "é"})
    jsonl.append(path, {"a": None})
    assert jsonl.read(path) == [{"a": 1}, {"a": "é"}, {"a": None}]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_torn_row_is_named_and_costs_no_other(tmp_path, cut):
    path, told = tmp_path / "rows.jsonl", []
    jsonl.append(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 22}\n'[:cut])
    jsonl.append(path, {"a": 3})
    assert jsonl.read(path, report=told.append) == [{"a": 1}, {"a": 3}]
    (line,) = told
    assert line.startswith(f"{path}:2: ")


def test_an_unknown_row_is_named_and_the_rest_is_read(tmp_path):
    path, told = tmp_path / "rows.jsonl", []
    jsonl.append(path, {"a": 1}, {"b": 2}, [3], {"a": 4})
    assert jsonl.read(path, lambda row: row["a"], told.append) == [1, 4]
    assert [line.split(": ")[0] for line in told] == [f"{path}:2", f"{path}:3"]


def _append_many(path, writer):
    for number in range(50):
        jsonl.append(path, {"writer": writer, "number": number, "long": "x" * 5000})


def test_writers_do_not_mix_their_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, writer)) for writer in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for writer in range(3):
        assert [row["number"] for row in rows if row["writer"] == writer] == list(range(50))
