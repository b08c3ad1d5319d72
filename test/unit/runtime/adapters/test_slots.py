"""Adapters in the simulator: exact, swapped at will, and not there when there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import intaglio
from intaglio.backend.images.adapter import AdapterImage, SiteImage, encode_site
from intaglio.backend.program.program import Program
from intaglio.dialects.codes import SLOT_BITS, AdapterMatrix, e4m3_decode
from intaglio.dialects.fixed_point import Scale
from intaglio.dialects.semantics import Quantized, quantize
from intaglio.runtime.adapters.slots import load_cycles
from intaglio.runtime.chip import Chip
from intaglio.runtime.reports.timing import critical_path, generation_cycles, spans, token_cycles

RANK = 6
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def chips(
    model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Chip]:
    """A model with slots (none for rank 0), compiled once for each set of options."""
    folder = tmp_path_factory.mktemp("slots")

    @cache
    def make(name: str = "llama", rank: int = RANK, *settings: str, residents: int = 1) -> Path:
        slots = f"{rank}" if rank else None
        out = folder / "-".join([name, str(rank), str(residents), *settings])
        return intaglio.compile(
            model(name),
            "roma-mini",
            out,
            context=32,
            settings=settings,
            adapter_slots=slots,
            resident_adapters=residents,
        ).folder

    return lambda *options, **more: intaglio.load(make(*options, **more))


def adapter(
    program: Program, seed: int, ranks: Sequence[int], size: float = 0.3, name: str = "test"
) -> AdapterImage:
    """A random adapter whose ranks go round the sites."""
    random = np.random.default_rng(seed)
    sites: dict[str, SiteImage] = {}
    for number, (site, one) in enumerate(program.sites.items()):
        if rank := ranks[number % len(ranks)]:
            a = random.normal(size=(rank, one.columns)) / np.sqrt(one.columns)
            b = random.normal(size=(one.rows, rank)) * size
            sites[site] = encode_site(a, b, program.parameters[one.a].code)
    return AdapterImage(name, "", sites)


def logits(chip: Chip) -> Any:
    chip.simulator.reset()
    return chip.simulator.forward(PROMPT)


# --- one product --------------------------------------------------------------------------------


def half_up(x: Fraction) -> int:
    return (2 * x.numerator + x.denominator) // (2 * x.denominator)


def clip(x: int) -> int:
    return min(max(x, -(1 << 31)), (1 << 31) - 1)


def restated(
    x: list[int], scale: Fraction, matrix: AdapterMatrix, shift: int, residual: list[int] | None
) -> list[int]:
    """A product with one half of an adapter in rational numbers."""
    weights = matrix.weights.tolist()
    out: list[int] = []
    for n, row in enumerate(weights):
        total = int(matrix.scales[n]) * sum(w * v for w, v in zip(row, x, strict=True))
        total = half_up(Fraction(total, 1 << shift))
        y = clip(half_up(total * scale * Fraction(2) ** (shift + 16 - matrix.exponent)))
        out.append(y if residual is None else clip(y + residual[n]))
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_products_equal_a_restatement_in_rational_numbers(
    chips: Any, data: st.DataObject, seed: int
) -> None:
    code = data.draw(st.sampled_from(["fp8", "int8"]))
    activations = data.draw(st.sampled_from(["int8", "int16", "fp8"]))
    chip = chips("llama", RANK, f"formats.adapter={code}", f"activations={activations}")
    program, simulator = chip.program, chip.simulator
    random = np.random.default_rng(seed)
    name, site = data.draw(st.sampled_from(sorted(program.sites.items())))
    rank = data.draw(st.integers(1, RANK))

    def matrix(rows: int, columns: int) -> AdapterMatrix:
        codes = random.integers(0, 127 if code == "fp8" else 256, (rows, columns), np.uint8)
        scales = random.integers(-(1 << 15), 1 << 15, rows).astype(np.int16)
        return AdapterMatrix(code, codes, scales, data.draw(st.integers(-4, 45)))

    image = SiteImage(rank, matrix(rank, site.columns), matrix(site.rows, rank))
    simulator.load_adapter(AdapterImage("one", "", {name: image}))
    for half, slot, columns in (("a", site.a, site.columns), ("b", site.b, RANK)):
        bound, one = next(
            (bound, i)
            for b in program.blocks
            for i in b.instructions
            for bound in b.instances
            if bound.get(i.does.uses.get("weights", "")) == slot
        )
        x = random.integers(-(1 << 20), 1 << 20, (2, columns)) >> random.integers(0, 18)
        if half == "b":
            x[:, rank:] = 0
        q = quantize(x, activations)
        residual = random.integers(-(1 << 31), 1 << 31, (2, site.rows))
        reads = [lambda c, q=q: q, lambda c, r=residual: r][: len(one.reads)]
        y = simulator._slot(one.does.bound(bound), reads)(SimpleNamespace())
        part = image.a if half == "a" else image.b
        for token in range(2):
            codes = q.codes[token]
            numbers = (e4m3_decode(codes) if activations == "fp8" else codes).tolist()
            scale = int(q.scale.mantissa[token, 0]) / Fraction(2) ** int(q.scale.exponent[token, 0])
            wanted = restated(
                numbers[: part.columns],
                scale,
                part,
                one.does.arguments["pre_shift"],
                residual[token].tolist() if half == "b" else None,
            )
            if half == "a":
                wanted += [0] * (RANK - rank)
            assert y[token].tolist() == wanted
    simulator.load_adapter(None)


def test_rank_zero_gives_the_residual_or_nothing(chips: Any) -> None:
    """So saturated values, too, stay as they are."""
    chip = chips()
    program, simulator = chip.program, chip.simulator
    slots = {slot: half for slot, (_, half) in program.slots.items()}
    seen = 0
    for block in program.blocks:
        for one in block.instructions:
            slot = block.instances[0].get(one.does.uses.get("weights", ""), "")
            if slot not in slots:
                continue
            seen += 1
            x = Quantized(np.ones((1, 400), np.int64), Scale.of(1.0), "int8")
            residual = np.array([[2**31 - 1, -(2**31), 0, 5]])
            given = {
                one.does.input: x,
                one.does.norm: Scale.of(1.0),
                one.does.residual: residual,
            }
            reads = [lambda c, value=given[name]: value for name in one.reads]
            product = one.does.bound(block.instances[0])
            y = simulator._slot(product, reads)(SimpleNamespace())
            assert np.array_equal(y, residual) if slots[slot] == "b" else not y.any()
    assert seen == 14 and simulator.saturations == 0


# --- whole models -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen", "phi"])
def test_no_adapter_is_the_base_bit_for_bit(chips: Any, name: str) -> None:
    base, slots = chips(name, 0), chips(name)
    assert not base.program.sites and slots.program.sites
    assert np.array_equal(logits(base), logits(slots))
    assert base.generate(PROMPT, 8) == slots.generate(PROMPT, 8)
    # Sites that an adapter leaves out, and those of rank 0, are as if there were none.
    program = slots.program
    empty = {
        site: SiteImage(
            0,
            AdapterMatrix("fp8", np.zeros((0, one.columns), np.uint8), np.zeros(0, np.int16), 0),
            AdapterMatrix("fp8", np.zeros((one.rows, 0), np.uint8), np.ones(one.rows, np.int16), 0),
        )
        for site, one in list(program.sites.items())[:3]
    }
    slots.load_adapter(AdapterImage("empty", "", empty))
    assert np.array_equal(logits(base), logits(slots))
    zero = adapter(program, 1, [RANK], size=0.0)
    slots.load_adapter(zero)
    assert np.array_equal(logits(base), logits(slots))


@pytest.mark.parametrize("name", ["llama", "qwen", "phi"])
def test_the_base_in_rom_is_the_same(chips: Any, name: str) -> None:
    base, slots = chips(name, 0), chips(name)
    for file in ("rom/matrices.bin", "rom/constants.bin", "sram/adapters.bin"):
        assert (base.folder / file).read_bytes() == (slots.folder / file).read_bytes()
    where = {one["name"]: one["pieces"] for one in base.mapping["matrices"]}
    assert where == {one["name"]: one["pieces"] for one in slots.mapping["matrices"]}


def test_adapters_in_sequence_are_those_of_fresh_chips(chips: Any) -> None:
    program = chips().program
    first = adapter(program, 1, [RANK])
    second = adapter(program, 2, [0, 3, 1, 6], size=0.8)
    fresh = []
    for image in (first, second, None):
        chip = chips()
        chip.load_adapter(image)
        fresh.append((chip.generate(PROMPT, 8), logits(chip)))
    assert not np.array_equal(fresh[0][1], fresh[1][1])
    assert not np.array_equal(fresh[0][1], fresh[2][1])
    chip = chips()
    for number in (0, 1, 2, 1, 0):
        image = (first, second, None)[number]
        chip.load_adapter(image)
        assert chip.adapter is image
        tokens, wanted = fresh[number]
        assert chip.generate(PROMPT, 8) == tokens and np.array_equal(logits(chip), wanted)


@settings(max_examples=12, deadline=None)
@given(
    residents=st.sampled_from([2, 3]),
    order=st.lists(st.integers(0, 5), min_size=1, max_size=12),
)
def test_residents_in_any_order_are_fresh_chips(
    chips: Any, residents: int, order: list[int]
) -> None:
    """Tokens and logits are; what is not there is loaded, into the place used longest ago."""
    chip, single = chips(residents=residents), chips()
    program = chip.program
    images = [None, *(adapter(program, seed, [seed, 0, RANK], 0.5) for seed in range(1, 6))]
    base = load_cycles(single.program, None)
    held: list[int] = []
    for number in order:
        image = images[number]
        cycles = chip.load_adapter(image)
        whole = load_cycles(program, image)
        if image is None:
            assert cycles == whole == 1 < base
        elif number in held:
            assert cycles == 1
            held.remove(number)
        else:
            assert cycles == whole == load_cycles(single.program, image) + 1
            held = held[1:] if len(held) == residents else held
        held += [number] if image is not None else []
        assert chip.adapter is image and chip.simulator._residents.images == [
            images[one] for one in held
        ]
        single.load_adapter(image)
        assert chip.ranks == single.ranks and chip.cycles(3) == single.cycles(3)
        assert np.array_equal(logits(chip), logits(single))
        assert chip.generate(PROMPT, 3) == single.generate(PROMPT, 3)


def test_an_adapter_is_known_by_its_contents(chips: Any) -> None:
    chip = chips(residents=2)
    one = adapter(chip.program, 1, [RANK])
    whole = chip.load_adapter(one)
    assert whole > 1
    assert chip.load_adapter(adapter(chip.program, 1, [RANK], name="renamed")) == 1
    assert chip.residents == ("renamed",)
    # Another of the same name and shape, and one that differs in a scale only.
    assert chip.load_adapter(adapter(chip.program, 2, [RANK])) == whole
    site, image = next(iter(one.sites.items()))
    scales = image.b.scales.copy()
    scales[0] += 1
    other = replace(image, b=replace(image.b, scales=scales))
    assert chip.load_adapter(replace(one, sites={**one.sites, site: other})) == whole
    # One without ranks is none.
    assert chip.load_adapter(AdapterImage("empty", "", {})) == 1
    assert len(chip.residents) == 2
    with pytest.raises(intaglio.UserError, match="no slots"):
        chip.load_adapter(AdapterImage("bad", "", {"layers.9.q_proj": image}))
    assert chip.load_adapter(one) == whole


def test_residents_take_their_sram_and_nothing_else(chips: Any) -> None:
    """Program, ROM and durations are those of one; slots are as many times as large."""
    one, three = chips(), chips(residents=3)
    ours, theirs = one.program.memories, three.program.memories
    for name, memory in ours.items():
        assert theirs[name] == replace(memory, rows=memory.rows + 2 * memory.resident)
    assert ours["adapters"].resident and one.mapping["sram"] == three.mapping["sram"]
    for file in ("rom/matrices.bin", "rom/constants.bin"):
        assert (one.folder / file).read_bytes() == (three.folder / file).read_bytes()
    assert one.cycles(4) == three.cycles(4)
    assert json.loads((three.folder / "program.json").read_text())["residents"] == 3
    assert "residents" not in json.loads((one.folder / "program.json").read_text())
    assert one.program.residents == 1 and three.program.residents == 3


def test_one_token_at_a_time_is_all_at_once(chips: Any) -> None:
    chip = chips()
    chip.load_adapter(adapter(chip.program, 3, [2, 0, 5]))
    whole = logits(chip)
    chip.simulator.reset()
    for position, token in enumerate(PROMPT):
        one, _ = chip.simulator.step(token, position)
        assert np.array_equal(one, whole[position])


def test_compiled_kernels_equal_the_reference(chips: Any) -> None:
    from intaglio.runtime.engines.simulator import Simulator

    chip = chips("qwen")
    image = adapter(chip.program, 4, [RANK, 2])
    chip.load_adapter(image)
    slow = Simulator(chip.program, chip.folder, reference=True)
    slow.load_adapter(image)
    assert np.array_equal(slow.forward(PROMPT), logits(chip))


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_an_adapter_does_what_its_floats_say(chips: Any, name: str) -> None:
    """Beside its matrix: the sum of W x and B (A x), up to the rounding of activations."""
    chip = chips(name, RANK, "activations=int16", "kv=int16")
    program = chip.program
    site = next(s for n, s in program.sites.items() if n == "layers.0.up_proj")
    image = adapter(program, 5, [0] * 7)
    random = np.random.default_rng(6)
    a = random.normal(size=(3, site.columns)) / np.sqrt(site.columns)
    b = random.normal(size=(site.rows, 3))
    image = AdapterImage("one", "", {site.name: encode_site(a, b, "fp8")})
    from intaglio.backend.images.adapter import floats

    stored = image.sites[site.name]
    values: dict[str, Any] = {}

    def observe(one: Any, instance: int, written: list[Any]) -> None:
        if instance == 0 and one.writes:
            slot = first_block.instances[0].get(one.does.uses.get("weights", ""), "")
            if slot:
                values[slot] = written[0]
                values[f"{slot} of"] = sources[one.reads[0]]
            sources[one.writes[0]] = written[0]

    first_block = next(b for b in program.blocks if len(b.instances) > 1)
    sources: dict[str, Any] = {}
    chip.load_adapter(image)
    chip.simulator.reset()
    chip.simulator.forward([7], observe=observe)
    x = values[f"{site.a} of"][0]
    hidden = values[site.a][0]
    assert np.abs(hidden[:3] - floats(stored.a) @ x).max() < 1e-3
    assert not hidden[3:].any()
    before = values[site.matrix][0]
    exact = before[site.first_row : site.first_row + site.rows] + floats(stored.b) @ hidden[:3]
    assert np.abs(values[site.b][0] - exact).max() < 1e-3 * np.abs(exact).max()


# --- what does not fit --------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_changes_nothing(chips: Any) -> None:
    chip = chips()
    program = chip.program
    good = adapter(program, 1, [RANK])
    chip.load_adapter(good)
    wanted = logits(chip)
    site = program.sites["layers.0.q_proj"]
    one = good.sites["layers.0.q_proj"]

    def refused(sites: dict[str, SiteImage], message: str) -> None:
        with pytest.raises(intaglio.UserError, match=message):
            chip.load_adapter(AdapterImage("bad", "", {**good.sites, **sites}))
        assert chip.adapter is good and np.array_equal(logits(chip), wanted)

    refused({"layers.9.q_proj": one}, r"changes layers\.9\.q_proj, for which the chip has no slots")
    a, b = np.zeros((RANK + 1, site.columns)), np.zeros((site.rows, RANK + 1))
    refused({site.name: encode_site(a, b, "fp8")}, "has rank 7 at .*, the chip's slots have 6")
    refused(
        {site.name: encode_site(a[:2, 1:], b[:, :2], "fp8")},
        r"A at layers\.0\.q_proj is \[2, 63\] of fp8, the chip's slots need \[2, 64\] of fp8",
    )
    refused({site.name: encode_site(a[:2], b[1:, :2], "fp8")}, r"B at .* is \[63, 2\]")
    refused({site.name: encode_site(a[:2], b[:, :2], "int8")}, r"A at .* of int8, .* of fp8")
    with pytest.raises(intaglio.UserError, match="no slots") as raised:
        chips("llama", 0).load_adapter(good)
    assert raised.value.hint == "compile with --adapter-slots RANK"


def test_a_format_of_every_target(chips: Any) -> None:
    chip = chips("llama", RANK, "formats.adapter=int8")
    assert {chip.program.parameters[s.a].code for s in chip.program.sites.values()} == {"int8"}
    chip.load_adapter(adapter(chip.program, 1, [4]))
    assert not np.array_equal(logits(chip), logits(chips("llama", 0)))
    assert set(SLOT_BITS) >= {"fp8", "int8"}


# --- time ---------------------------------------------------------------------------------------


def test_durations_follow_the_rank_of_each_site(chips: Any) -> None:
    chip = chips("llama", 40)
    program = chip.program
    names = list(program.sites)
    ranks = {name: (7 * number) % 41 for number, name in enumerate(names)}
    checked = 0
    for span, block in spans(program, [9], ranks=ranks):
        one = program.blocks[block].instructions[span.instruction]
        bound = program.blocks[block].instances[span.instance]
        slot = bound.get(one.does.uses.get("weights", ""), "")
        rank = ranks[program.slots[slot][0].name] if slot in program.slots else 0
        wanted = one.issue.duration(tokens=10, rank=rank)
        assert int(span.finish[0] - span.start[0]) == wanted
        checked += slot in program.slots
    assert checked == 2 * len(names)


def test_cycles_of_a_token_grow_with_the_rank(chips: Any) -> None:
    program = chips("llama", 40).program
    cycles = [
        int(token_cycles(program, [5], ranks=dict.fromkeys(program.sites, rank)).out[0])
        for rank in (0, 1, 8, 9, 24, 40)
    ]
    assert cycles == sorted(cycles) and cycles[-1] > cycles[0]
    assert cycles[0] == int(token_cycles(program, [5]).out[0])
    unsampled = token_cycles(program, [5], sampled=False, ranks=dict.fromkeys(program.sites, 40))
    assert int(unsampled.period[0]) > int(token_cycles(program, [5], sampled=False).period[0])
    path = critical_path(program, 5, ranks=dict.fromkeys(program.sites, 40))
    length = sum(step.cycles + step.issue for step in path)
    period = token_cycles(program, [5], ranks=dict.fromkeys(program.sites, 40)).period
    assert length == int(period[0])


def test_the_chip_counts_with_the_active_adapter(chips: Any) -> None:
    chip = chips("llama", 40)
    base = chip.cycles(4), chip.generation_cycles(3, 4)
    image = adapter(chip.program, 1, [40])
    cost = chip.load_adapter(image)
    assert chip.ranks == dict.fromkeys(chip.program.sites, 40)
    assert chip.cycles(4) > base[0]
    assert chip.generation_cycles(3, 4) == generation_cycles(chip.program, 3, 4, chip.ranks)
    assert chip.generation_cycles(3, 4).prefill > base[1].prefill
    # No fewer cycles than the bytes need, and emptying costs next to nothing.
    assert cost >= image.size / chip.program.machine.load_bytes
    assert cost == load_cycles(chip.program, image)
    assert chip.load_adapter(None) <= len(chip.program.sites)
    assert (chip.cycles(4), chip.generation_cycles(3, 4)) == base
