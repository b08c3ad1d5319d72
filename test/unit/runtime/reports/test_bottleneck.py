"""What limits a token: shares that add up, bounds that hold, and the sentence that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intaglio.backend.program.program import load_program
from intaglio.runtime.reports.bottleneck import bottleneck, bottleneck_text
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.tables import all_tables, limit_lines, summary_lines
from intaglio.runtime.reports.text import inspect_text
from intaglio.runtime.reports.timing import spans

Named = Callable[[str], Path]


def test_shares_operator_and_bound():
    limits = bottleneck(
        1000,
        {"matrix": {"matvec": 500, "embed": 20}, "vector": {"softmax": 300}, "kv": {"append": 0}},
        180,
        {"matrix": 600, "vector": 700},
        250.0,
    )
    assert limits["units"] == {"matrix": 0.52, "vector": 0.3, "issue": 0.18, "kv": 0}
    assert limits["operator"] == {"opcode": "matvec", "queue": "matrix", "share": 0.5}
    assert limits["idle_lanes"] == 0.75
    assert limits["bound"] == {"name": "vector", "cycles": 700, "share": 0.7}
    assert bottleneck_text(limits) == (
        "matrix units have 52.0% of the critical path, vector 30.0%, issue 18.0%; the longest "
        "operator is matvec (50.0%); lanes are idle 75.0% of the time. The nearest bound, vector "
        "units alone, is 700 cycles, 70.0% of the token."
    )


@pytest.mark.parametrize(
    ("by_unit", "issue", "own", "lanes", "wanted"),
    [
        ({"matrix": {"matvec": 90}}, 10, {"matrix": 80}, 95, "every lane always busy, is 95"),
        ({"matrix": {"matvec": 40}}, 60, {"matrix": 50}, 45, "the cycles between instructions"),
        ({"attention": {"matvec": 100}}, 0, {"attention": 100}, 0, "lanes are idle 100.0%"),
    ],
)
def test_every_kind_of_limit(by_unit, issue, own, lanes, wanted: str):
    assert wanted in bottleneck_text(bottleneck(100, by_unit, issue, own, lanes))


@pytest.mark.parametrize("name", ["llama", "tied", "phi", "int8"])
def test_limits_are_the_programs(compiled: Named, name: str):
    content, program = inspect_json(compiled(name)), load_program(compiled(name))
    for one in content["positions"]:
        limits = one["limits"]
        assert sum(limits["units"].values()) == pytest.approx(1)
        assert limits["idle_lanes"] == pytest.approx(1 - one["lane_utilisation"])
        own: dict[str, int] = {}
        for span, number in spans(program, [one["position"]]):
            issue = program.blocks[number].instructions[span.instruction].issue
            # The next one starts a pace later, or when this one has finished and is issued.
            given = {"tokens": one["position"] + 1, "rank": 0}
            cycles = (
                int(issue.duration(**given)) + program.machine.issue
                if issue.pace is None
                else int(issue.pace(**given))
            )
            own[issue.queue] = own.get(issue.queue, 0) + cycles
        assert limits["bounds"] == {**own, "lanes": content["lower_bound"]["cycles"]}
        # A bound is one: the token takes no less.
        assert limits["bound"]["cycles"] == max(limits["bounds"].values()) <= one["cycles"]
        path = one["critical_path"]
        units = {unit: sum(opcodes.values()) for unit, opcodes in path["by_unit"].items()}
        assert units == path["by_queue"]
        longest = max(n for opcodes in path["by_unit"].values() for n in opcodes.values())
        assert limits["operator"]["share"] * one["cycles"] == pytest.approx(longest)
    lines = list(limit_lines(content["positions"]))
    assert set(lines) <= set(summary_lines(content))
    assert all(line in inspect_text(content) for line in lines)
    assert all(len(line) <= 98 for line in lines)


def test_cycles_are_a_tree_of_units_and_operators(slotted: Path):
    """A matrix product stands below the units that do it: attention's too, with adapters."""
    (rows,) = [
        rows
        for title, _, rows, _ in all_tables(inspect_json(slotted))
        if title == "Cycles of a token"
    ]
    first = next(i for i, row in enumerate(rows) if row[0] == "critical path")
    whole = np.array([int(cell.replace(",", "")) for cell in rows[first][1:]])
    units = inside = np.zeros_like(whole)
    names: list[str] = []
    for label, *cells in rows[first + 1 :]:
        if not label.startswith("  ") or label.startswith("  more"):
            break
        values = np.array([int(cell.replace(",", "")) for cell in cells])
        if label.startswith("    "):
            inside = inside + values
            names.append(label.strip())
        else:
            units = units + values
            names.append(label.strip())
    issue = values
    assert (units == whole).all() and (inside == whole - issue).all()
    assert names.count("matvec") == 2
    assert names.index("attention units") < len(names) - 1 - names[::-1].index("matvec")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama", {"layers": 2, "hidden": 64, "vocabulary": 256}),
        ("tied", {"layers": 2, "hidden": 64, "vocabulary": 64}),
        ("qwen", {"layers": 2, "hidden": 64, "vocabulary": 64}),
        ("phi", {"layers": 2, "hidden": 64, "vocabulary": 64}),
    ],
)
def test_the_models_shape(compiled: Named, name: str, wanted: dict[str, int]):
    import onnx

    shape = inspect_json(compiled(name))["shape"]
    assert {key: shape[key] for key in wanted} == wanted
    graph = onnx.load(compiled(name) / "reference" / "model.onnx").graph
    dims = {one.name: list(one.dims) for one in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    sizes = [{a.name: a.i for a in node.attribute} for node in products]
    elements = sum(size["N"] * size["K"] for size in sizes)
    plain = [one for name, one in dims.items() if name.endswith((".weight", ".bias"))]
    elements += sum(int(np.prod(one)) for one in plain)
    assert shape["parameters"] == elements


def test_the_folder_stands_in_the_title(compiled: Named):
    text = inspect_text(inspect_json(compiled("llama")))
    first, second, *_ = text.splitlines()
    assert first == "llama: model.onnx for roma-mini"
    assert second == "2 layers, hidden size 64, vocabulary 256, 94,528 parameters"
    assert json.dumps(str(compiled("llama").parent)) not in json.dumps(
        inspect_json(compiled("llama"))
    )
