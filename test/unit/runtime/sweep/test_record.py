"""The record: whole lines, one sweep at a time, nothing that was finished is lost."""

import json

import pytest

from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.record import Record


def test_rows_are_kept_in_order(tmp_path):
    path = tmp_path / "deep" / "s.jsonl"
    with Record(path, resume=False) as record:
        record.add({"key": "a", "figures": {"x": 1.5}})
        # On the disk before the next one, whatever happens then.
        assert json.loads(path.read_text())["key"] == "a"
        record.add({"key": "b"})
    with Record(path, resume=True) as record:
        assert list(record.rows) == ["a", "b"]
        assert record.rows["a"]["figures"] == {"x": 1.5}


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "s.jsonl"
    with Record(path, resume=False) as record:
        record.add({"key": "a"})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "key": "b", "fig')
    with Record(path, resume=True) as record:
        assert list(record.rows) == ["a"]
        record.add({"key": "c"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_rows_are_not_written_over(tmp_path):
    path = tmp_path / "s.jsonl"
    with Record(path, resume=False) as record:
        record.add({"key": "a"})
    with pytest.raises(UserError, match="has 1 rows of a sweep") as error:
        Record(path, resume=False)
    assert "--resume" in (error.value.hint or "")


def test_two_sweeps_do_not_share_a_file(tmp_path):
    path = tmp_path / "s.jsonl"
    with Record(path, resume=False), pytest.raises(UserError, match="another sweep"):
        Record(path, resume=True)
    Record(path, resume=True).close()


@pytest.mark.parametrize(
    "text", ["hello\n", '{"key": "a"}\n', '{"schema": 2, "key": "a"}\n', "3\n"]
)
def test_another_file_is_left_alone(tmp_path, text):
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="line 1 is no row"):
        Record(path, resume=True)
    assert path.read_text() == text


def test_a_later_row_of_a_point_counts(tmp_path):
    with Record(tmp_path / "s.jsonl", resume=False) as record:
        record.add({"key": "a", "error": "killed"})
        record.add({"key": "a", "fits": True})
    with Record(tmp_path / "s.jsonl", resume=True) as record:
        assert record.rows["a"]["fits"]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Record(tmp_path, resume=False)
