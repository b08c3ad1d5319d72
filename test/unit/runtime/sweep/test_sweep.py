"""The command: points in this process and on a cluster, the record, and what comes out."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from intaglio.backend.stages import Options
from intaglio.runtime import cli
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.sweep import engines
from intaglio.runtime.sweep.evaluate import FIGURES, evaluate, figure_of, title_of
from intaglio.runtime.sweep.page import page_html
from intaglio.runtime.sweep.points import Asked
from intaglio.runtime.sweep.sweep import Progress
from intaglio.runtime.what_if import WhatIf

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="without Dask")
needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="without Optuna")
VARY = ("--vary", "vector.lanes=16,32", "--vary", "h_unit.sram_bytes=64,65536")


@pytest.fixture
def sweep(model, tmp_path, capsys):
    """Runs the command in this process, on the smallest model; gives what it printed."""

    def sweep(*more, code=0, workers="0", record="s.jsonl"):
        file = str(model("llama"))
        arguments = ["sweep", file, "--target", "roma-mini", "-o", str(tmp_path / record)]
        assert cli.main([*arguments, "--workers", workers, *map(str, more)]) == code
        return capsys.readouterr()

    return sweep


def rows_of(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_figures_are_those_of_inspect(model, compiled):
    content = inspect_json(compiled("llama"))
    options = Options("roma-mini")
    found = evaluate(WhatIf(model("llama"), options), options, Asked(prompt=2))
    assert found["fits"] and found["energy_by"] == "activity"
    figures = found["figures"]
    for one, energy, worth in zip(
        content["positions"], content["power"]["positions"], content["worth"], strict=True
    ):
        at = one["position"]
        assert figures[f"cycles@{at}"] == one["cycles"]
        assert figures[f"tokens_per_second@{at}"] == one["tokens_per_second"]
        assert figures[f"reached@{at}"] == one["latency_bound"]["reached"]
        assert figures[f"millijoules@{at}"] == energy["token"]["millijoules"]
        assert figures[f"tokens_per_joule@{at}"] == worth["tokens_per_joule"]
        assert figures[f"tokens_per_second_per_mm2@{at}"] == worth["tokens_per_second_per_mm2"]
    rom, sram = content["rom"], content["sram"]
    assert figures["rom_share"] == rom["used_bits"] / rom["capacity_bits"]
    assert figures["sram_share"] == sram["used_bytes"] / sram["capacity_bytes"]
    assert figures["mm2"] == content["area"]["die_mm2"]["value"]
    assert set(figures) <= {
        name for name in figures if figure_of(name) or name.partition("@")[0] in FIGURES
    }
    assert title_of("tokens_per_second@7") == "tokens/s at 7"


def test_a_grid(sweep, tmp_path):
    said = sweep(*VARY, "--csv", tmp_path / "s.csv", "--html", tmp_path / "s.html")
    assert "4 points in this process" in said.err
    assert said.out.startswith("4 points, 2 of them fit")
    assert "does not fit, 2 times: the SRAM of roma-mini" in said.out
    rows = rows_of(tmp_path / "s.jsonl")
    assert [row["fits"] for row in rows] == [False, True, False, True]
    assert rows[0]["point"] == {"vector.lanes": "16", "h_unit.sram_bytes": "64"}
    assert "every H-Unit is over" in rows[0]["reason"] and "figures" not in rows[0]
    table = list(csv.DictReader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [one["fits"] for one in table] == ["False", "True", "False", "True"]
    assert float(table[1]["mm2"]) == rows[1]["figures"]["mm2"]
    assert any(one["front"] == "True" for one in table)
    page = (tmp_path / "s.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    # Over each of the two other objectives.
    assert page.count("<circle") == 4 and page.count('<path class="p') == 2


def test_it_goes_on_where_it_stopped(sweep, tmp_path):
    sweep("--vary", "vector.lanes=16,32")
    before = rows_of(tmp_path / "s.jsonl")
    refused = sweep("--vary", "vector.lanes=16,32", code=1)
    assert "--resume" in refused.err
    sweep("--vary", "vector.lanes=16,32,64", "--resume")
    rows = rows_of(tmp_path / "s.jsonl")
    assert rows[:2] == before and len(rows) == 3
    # Other figures are other points.
    sweep("--vary", "vector.lanes=16", "--resume", "--prompt", "0")
    assert len(rows_of(tmp_path / "s.jsonl")) == 4


def test_points_as_json(sweep, tmp_path):
    file = tmp_path / "points.jsonl"
    file.write_text(
        '{"kv": "int8", "context": 8}\n{"adapter_slots": "4"}\n{"target": "tom-mini"}\n'
    )
    said = json.loads(sweep("--points", file, "--json", "--objective", "cycles@0").out)
    assert said["objectives"] == ["cycles@0"] and len(said["points"]) == 3
    assert [row["point"] for row in said["points"]][1] == {"adapter_slots": "4"}
    # An int4 model has no cells on tom-mini, which is a point that does not fit.
    assert not said["points"][2]["fits"] and said["points"][2]["reason"]
    assert said["front"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "--vary or --points"),
        (("--vary", "l_unit.lane=8"), "did you mean 'l_unit.lanes'"),
        (("--vary", "kv=int8", "--objective", "speed"), "no figure of a point"),
        (("--vary", "kv=int8", "--set", "kv=int8"), "set for all points"),
        (("--points", "none.jsonl"), "none.jsonl"),
        (("--vary", "kv=int8", "--search", "0"), "--search N"),
        (("--vary", "kv=int8", "--position", "900", "--prompt", "-1"), "numbers of tokens"),
    ],
)
def test_what_is_refused(sweep, tmp_path, more, words):
    assert words in sweep(*more, code=1).err
    assert not (tmp_path / "s.jsonl").exists() or not rows_of(tmp_path / "s.jsonl")


def test_a_bug_at_a_point_ends_no_sweep(sweep, tmp_path, monkeypatch):
    right, calls = engines.evaluate, list[int]()

    def wrong(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("a bug")
        return right(*arguments)

    monkeypatch.setattr(engines, "evaluate", wrong)
    said = sweep("--vary", "vector.lanes=16,32", code=1)
    assert "could not be evaluated: ValueError: a bug" in said.err
    assert "1 could not be evaluated" in said.out
    # It is tried again.
    sweep("--vary", "vector.lanes=16,32", "--resume")
    assert len(calls) == 3


@needs_optuna
def test_a_search_proposes_the_same_again(sweep, tmp_path):
    vary = ("--vary", "vector.lanes=16,32,64", "--vary", "network.results_per_cycle=16,32,64")
    sweep(*vary, "--search", "5", "--seed", "2")
    first = rows_of(tmp_path / "s.jsonl")
    assert 5 <= len(first) <= 9
    # Stopped after three points, it finds the others.
    lines = (tmp_path / "s.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "t.jsonl").write_text("".join(lines[:3]))
    sweep(*vary, "--search", "5", "--seed", "2", "--resume", record="t.jsonl")
    again = rows_of(tmp_path / "t.jsonl")
    assert [row["key"] for row in again] == [row["key"] for row in first]


@needs_dask
def test_workers_give_the_same(sweep, tmp_path):
    sweep(*VARY)
    said = sweep(*VARY, workers="2", record="t.jsonl")
    assert "on 2 workers of this machine" in said.err
    here, there = (
        {row["key"]: {**row, "cpu_seconds": 0} for row in rows_of(tmp_path / name)}
        for name in ("s.jsonl", "t.jsonl")
    )
    assert here == there


def test_without_dask_it_says_so(sweep, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    said = sweep("--vary", "vector.lanes=16", workers="1", code=1)
    assert "pip install 'intaglio[sweep]'" in said.err


@needs_dask
def test_nobody_answers(sweep):
    said = sweep("--vary", "vector.lanes=16", "--scheduler", "tcp://127.0.0.1:1", code=1)
    assert "no scheduler of Dask answers there" in said.err


@needs_dask
def test_a_killed_sweep_loses_nothing(model, tmp_path):
    record = tmp_path / "s.jsonl"
    command = [sys.executable, "-m", "intaglio.runtime.cli", "sweep", str(model("llama"))]
    command += ["--target", "roma-mini", "-o", str(record), "--workers", "1", "--resume"]
    for key in ("vector.lanes=16,32,64", "latency.requantise=3,4,5,6"):
        command += ["--vary", key]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not record.exists() or len(rows_of(record)) < 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {row["key"] for row in rows_of(record)}
    assert len(kept) >= 2
    subprocess.run(command, check=True, capture_output=True)
    rows = rows_of(record)
    assert len(rows) == len({row["key"] for row in rows}) == 12
    assert kept <= {row["key"] for row in rows}


def test_progress_says_how_long():
    said: list[str] = []
    now = [0.0]
    progress = Progress(10, None, said.append, clock=lambda: now[0])
    progress.stored()
    for second in range(1, 5):
        now[0] = 4.0 * second
        progress.finished()
    assert said == ["4 of 10 points, 24 s left"]


class _Checked(HTMLParser):
    """Tags that were opened and not closed."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("path", "circle", "polyline"):
            return
        while self.open and self.open[-1] != tag and self.open[-1] == "li":
            self.open.pop()
        assert self.open.pop() == tag


def test_the_page_stands_by_itself():
    rows = [
        {
            "key": f"k{number}",
            "point": {"l_unit.lanes": str(8 << number % 3), "kv": "<b>"},
            "fits": True,
            "figures": {"tokens_per_second@0": 100.0 + number, "mm2": float(number % 7)},
        }
        for number in range(1500)
    ]
    rows.append({"key": "n", "point": {"kv": "&"}, "fits": False, "reason": "too <large>"})
    page = page_html("a & b", Options("roma", ("kv=int8",)), rows, ["tokens_per_second@0", "mm2"])
    checked = _Checked()
    checked.feed(page)
    assert checked.open == []
    assert "<b>" not in page and "too &lt;large&gt;" in page and "a &amp; b --set kv=int8" in page
    # Read without a script: marks, lines of a thousand points, and a table.
    assert page.count("<circle") == 1500
    assert page.count('<path class="p') <= 1000 and "points are left out" in page
    assert page.count("<tr data-n") == 200
    points = re.search(r'<script type="application/json" id="points">(.*?)</script>', page)
    assert points and len(json.loads(points[1])) == 1500
    assert "prefers-color-scheme: dark" in page
    assert page_html("t", Options("roma"), rows[-1:], []).count("<svg") == 0
