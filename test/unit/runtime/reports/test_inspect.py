"""Reports of a compiled model: their sums, and that they agree with the program."""

import json
import re
import shutil
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.hw.units.adapter.layout import places_of
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects import formula
from intaglio.dialects.errors import UserError
from intaglio.runtime.reports.inspect import inspect_json
from intaglio.runtime.reports.tables import size_text, summary_lines
from intaglio.runtime.reports.text import inspect_text
from intaglio.runtime.reports.timing import spans, token_cycles
from intaglio.runtime.reports.wording import counted

USES = ("codes_bits", "scales_bits", "zeros_bits", "padding_bits")


@pytest.mark.parametrize("name", ["llama", "tied", "qwen", "phi", "int8", "hqq2"])
def test_rom_adds_up(compiled, name: str):
    out: Path = compiled(name)
    rom, program = inspect_json(out)["rom"], load_program(out)
    for use in USES:
        assert rom[use] == sum(entry[use] for entry in rom["by_class"].values()) >= 0
    assert sum(rom[use] for use in USES) == rom["used_bits"] + rom["extra_bits"]
    banks = rom["banks"]
    assert banks["fill_min"] <= banks["fill_mean"] <= banks["fill_max"] <= 1
    mean = banks["fill_mean"] * banks["count"] * banks["bits"]
    assert mean == pytest.approx(rom["used_bits"])
    matrices = [p for p in program.parameters.values() if p.group]
    stored = sum(p.codes.size + p.scales.size for p in matrices if p.codes and p.scales)
    tables = sum(
        p.codes.size
        for p in program.parameters.values()
        if p.codes and not p.group and p.codes.file == "rom/matrices.bin"
    )
    assert rom["codes_bits"] + rom["scales_bits"] == 8 * (stored + tables)
    assert (rom["zeros_bits"] > 0) == (name in ("qwen", "hqq2"))
    groups = sum(p.offsets.size // 4 for p in matrices if p.offsets)
    if groups:
        assert rom["zeros_bits"] == groups * max(p.offset_bits for p in matrices)


def test_classes_are_slots_of_the_layers(compiled):
    by_class = inspect_json(compiled("llama"))["rom"]["by_class"]
    assert by_class["attn_qkv_proj"]["tensors"] == 2
    assert by_class["attn_qkv_proj"]["weights"] == 2 * 128 * 64
    assert by_class["lm_head"] == {
        "tensors": 1,
        "weights": 256 * 64,
        "codes_bits": 256 * 64 * 4,
        "scales_bits": 256 * 2 * 16,
        "zeros_bits": 0,
        "padding_bits": by_class["lm_head"]["padding_bits"],
        "extra_bits": 0,
    }


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_cycles_add_up(compiled, name: str):
    out: Path = compiled(name)
    content, program = inspect_json(out), load_program(out)
    assert [one["position"] for one in content["positions"]] == [0, 127]
    for one in content["positions"]:
        cycles = token_cycles(program, [one["position"]])
        assert one["cycles"] == cycles.period[0]
        assert one["cycles_to_token_out"] == cycles.out[0]
        assert one["tokens_per_second"] == 500_000_000 / one["cycles"]
        path = one["critical_path"]
        for kind in ("by_queue", "by_opcode"):
            assert sum(path[kind].values()) + path["issue_cycles"] == one["cycles"]
        assert sum(block["cycles"] for block in one["blocks"]) == one["cycles"]
        assert all(0 < busy <= 1 for busy in one["busy"].values())
        assert one["cycles"] >= content["lower_bound"]["cycles"]
        bound = content["lower_bound"]["cycles"] / one["cycles"]
        assert one["lane_utilisation"] == pytest.approx(bound)
        least = one["latency_bound"]
        assert content["lower_bound"]["cycles"] <= least["cycles"] <= one["cycles"]
        parts = least["work"] + least["latencies"] - least["overlap"]
        assert least["cycles"] - 1 < parts <= least["cycles"] + 1e-6
        assert least["reached"] == least["cycles"] / one["cycles"]
        assert least["tokens_per_second"] == 500_000_000 / least["cycles"]
    assert sum(block["sampled"] for block in content["positions"][0]["blocks"]) == 1


def test_slowest_instructions_name_their_nodes(compiled):
    slowest = inspect_json(compiled("llama"))["slowest"]
    cycles = [one["cycles"] for one in slowest]
    assert cycles == sorted(cycles, reverse=True) and len(slowest) == 10
    assert all(one["onnx"] and 0 < one["share"] < 1 for one in slowest)
    head = next(one for one in slowest if one["block"] == "head")
    assert head["onnx"] == ["/lm_head/MatMul"] and head["cycles"] == head["cycles_each"]


def test_slowest_instructions_have_their_queues_for_so_long(compiled):
    program = load_program(compiled("llama"))
    blocks = {block.name: block for block in program.blocks}
    at = program.positions[-1]
    taken: dict[tuple[str, int], list[int]] = {}
    for span, number in spans(program, [at]):
        block = program.blocks[number]
        if span.instance == 0:
            key = block.name, block.whole_of[span.instruction]
            taken.setdefault(key, []).append(int(span.free[0] - span.start[0]))
    slowest = inspect_json(compiled("llama"))["slowest"]
    assert any(one["beats"] > 1 for one in slowest)
    for one in slowest:
        own = taken[one["block"], one["instruction"]]
        assert one["opcode"] == blocks[one["block"]].whole[one["instruction"]].opcode
        assert one["beats"] == len(own)
        assert formula.parse(one["duration"])(tokens=at + 1, rank=0) == sum(own)


def test_sram_is_that_of_the_caches(compiled):
    content = inspect_json(compiled("llama"))
    sram = content["sram"]
    # Keys and values of two layers, two heads of 16 bytes, 128 tokens; a scale of one byte each.
    assert sram["kv_bytes"] == sram["used_bytes"] == 2 * 2 * 2 * 16 * 128
    assert content["vector_memory"]["kv_scale_bytes"] == 2 * 2 * 2 * 128
    assert sram["kv_bytes_per_token"] == 136


def test_positions_can_be_chosen(compiled):
    content, program = inspect_json(compiled("llama"), [7, 3]), load_program(compiled("llama"))
    assert [one["position"] for one in content["positions"]] == [7, 3]
    assert [one["position"] for one in content["power"]["positions"]] == [7, 3]
    assert content["positions"][1]["cycles"] == token_cycles(program, [3]).period[0]
    assert {one["position"] for one in content["slowest"]} == {3}
    with pytest.raises(UserError, match=r"position 128 is out of range\n.*0 to 127"):
        inspect_json(compiled("llama"), [128])


def test_cycles_with_and_without_an_adapter(model, tmp_path: Path, compiled):
    """Positions are those of rank 0; the adapter's are those of every slot filled. H-Units that are
    narrower than vectors need several cycles for a row."""
    narrow = ("h_unit.attention_lanes=4", "h_unit.kv_port_bytes=4")
    options = Options("roma-mini", narrow, context=64, adapter_rank=4)
    slotted = compile_model(model("llama"), tmp_path / "out", options).folder
    content, program = inspect_json(slotted), load_program(slotted)
    adapter = content["adapter"]
    assert adapter["rank"] == 4 and adapter["sites"] == len(program.sites)
    assert adapter["bytes"] == content["sram"]["adapter_slot_bytes"]
    full = {name: site.rank for name, site in program.sites.items()}
    for without, one in zip(content["positions"], adapter["positions"], strict=True):
        where = [one["position"]]
        assert without["cycles"] == token_cycles(program, where).period[0]
        assert one["cycles"] == token_cycles(program, where, ranks=full).period[0]
        assert one["added_cycles"] == one["cycles"] - without["cycles"] > 0
        empty, filled = (x["critical_path"]["adapter_slot_cycles"] for x in (without, one))
        assert 0 < empty < filled <= one["cycles"]
    places = places_of(program)
    assert places is not None and adapter["load_cycles"] == places.load_cycles(full)
    text = inspect_text(content)
    assert f"with an adapter of rank 4 at {adapter['sites']} sites" in text
    assert f"loaded in {adapter['load_cycles']:,} cycles" in text
    plain = inspect_json(compiled("llama"))
    assert plain["adapter"] is None and "empty adapter slots" not in inspect_text(plain)
    assert {one["critical_path"]["adapter_slot_cycles"] for one in plain["positions"]} == {0}


def test_what_empty_slots_cost_is_told_apart(slotted: Path):
    content = inspect_json(slotted)
    empty = content["positions"][0]["critical_path"]["adapter_slot_cycles"]
    added = content["adapter"]["positions"][0]["added_cycles"]
    line = (
        f"{added:,} cycles a token more than with empty slots, whose products are {empty:,} cycles "
        "of the critical path"
    )
    # Without slots other instructions are on the critical path: that is not the price of slots.
    assert line in " ".join(inspect_text(content).split())


def test_the_title_is_the_models_file(compiled):
    text = inspect_text(inspect_json(compiled("llama")))
    assert text.startswith("llama: model.onnx for roma-mini\n")


@pytest.mark.parametrize(
    ("settings", "line"),
    [((), "half8"), (("activations=int8",), "int8"), (("activations=int16",), "int16")],
)
def test_formats_of_products(model, tmp_path: Path, settings: tuple[str, ...], line: str):
    """What the target has, where products take it; else what they take."""
    out = compile_model(model("tied"), tmp_path / "out", Options("roma-mini", settings)).folder
    content = inspect_json(out)
    assert set(content["formats"]["inputs"].values()) == {line}
    assert f"activations {line}, KV" in inspect_text(content)
    own = dict.fromkeys(map(str, range(42)), "int8")
    content["formats"]["inputs"] = {**own, "head": "half8"}
    text = " ".join(inspect_text(content).split())
    assert "activations int8 (half8 for head), KV" in text


def test_the_latency_bound_is_said(compiled, tmp_path: Path):
    content = inspect_json(compiled("llama"))
    first, last = (one["latency_bound"] for one in content["positions"])
    lines = [line for line in summary_lines(content) if line.startswith("bound   ")]
    assert lines[1:] == [
        f"bound   {one['tokens_per_second']:,.0f} tokens/s at position {position} "
        f"({one['cycles']:,} cycles) in the best order of work, {one['reached']:.1%} reached"
        for position, one in ((0, first), (127, last))
    ]
    text = inspect_text(content)
    (row,) = [line.split() for line in text.splitlines() if "latency bound" in line]
    assert row[-2:] == [f"{first['cycles']:,}", f"{last['cycles']:,}"]
    # A folder of an earlier version states none.
    old = Path(shutil.copytree(compiled("llama"), tmp_path / "old"))
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["latency_bound"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    content = inspect_json(old)
    assert [one["latency_bound"] for one in content["positions"]] == [None, None]
    assert "in the best order" not in inspect_text(content)
    assert "latency bound" not in inspect_text(content)


def test_a_table_without_rows_is_left_out(compiled):
    """Zeros are counted of ternary weights, and on chips with ternary cells."""
    content = inspect_json(compiled("llama"))
    assert not content["zeros"] and "Zeros in ROM" not in inspect_text(content)


def test_settings_beyond_what_is_assumed_are_named(model, tmp_path: Path):
    settings = ("l_unit.lanes=64", "array.l_units=8", "latency.sample=9")
    options = Options("roma-mini", settings, context=16, emit="program")
    content = inspect_json(compile_model(model("llama"), tmp_path / "out", options).folder)
    assert {one["name"]: one["range"] for one in content["outside_range"]} == {
        "l_unit.lanes": [4, 32]
    }
    assert "l_unit.lanes=64 is beyond 4 to 32" in inspect_text(content)


@pytest.mark.parametrize(
    "number,noun,text",
    [(0, "layer", "0 layers"), (1, "layer", "1 layer"), (1024, "token", "1,024 tokens")],
)
def test_things_are_counted(number: int, noun: str, text: str):
    assert counted(number, noun) == text


def test_same_input_same_report(compiled):
    assert inspect_json(compiled("llama")) == inspect_json(compiled("llama"))
    json.dumps(inspect_json(compiled("qwen")))


def test_text_fits_its_width_and_shows_nodes(compiled):
    for width in (100, 140):
        text = inspect_text(inspect_json(compiled("llama")), width)
        assert max(map(len, text.splitlines())) <= width
        assert "layer x 2" in text and "attn_qkv_proj" in text
        assert "/model/layers.1/input_layernorm/SkipLayerNorm" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_lines_of_the_summary_go_on_below_their_text(slotted: Path, width: int):
    """No line but a title, and those of tables and their notes, begins at the margin."""
    content = inspect_json(slotted)
    text = inspect_text(content, width)
    summary = text.split("\n\n")[1].splitlines()
    assert all(len(line) <= width for line in summary)
    assert all(re.match(r"  \S+ +\S| {10}\S", line) for line in summary)
    words = " ".join(summary_lines(content)).split()
    assert " ".join(summary).split() == words


def test_missing_files_are_the_users_error(compiled, tmp_path: Path):
    with pytest.raises(UserError, match="holds no compiled program"):
        inspect_json(tmp_path)
    shutil.copytree(compiled("llama"), tmp_path / "out")
    (tmp_path / "out" / "mapping.json").unlink()
    with pytest.raises(UserError, match=r"mapping\.json: cannot be read"):
        inspect_json(tmp_path / "out")


@pytest.mark.parametrize(
    "count,text",
    [(0, "0 B"), (999, "999 B"), (1234, "1.234 kB"), (1.86e9, "1.86 GB"), (2e12, "2000 GB")],
)
def test_sizes(count: float, text: str):
    assert size_text(count) == text
