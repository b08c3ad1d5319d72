"""What a target file may contain: every section and key with its type, unit, meaning and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from intaglio.dialects.formats import BLOCK_FORMATS
from intaglio.dialects.machine import KV_FORMATS
from intaglio.dialects.number_ranges import RANGES

SCHEMA = 1
"""Version of the target file format that this compiler reads."""

Kind = Literal["int", "float", "choice", "choices", "text"]


@dataclass(frozen=True)
class Key:
    """One parameter of a target.

    `low` and `high` are bounds of sense, for files and options alike; the range of an assumed
    figure is stated in the file and lies within them.
    """

    kind: Kind
    meaning: str
    unit: str = ""
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    power_of_two: bool = False
    required: bool = True
    settable: bool = True
    pattern: str = ""
    """What a text matches as a whole; any text does without it."""
    form: str = "a text"
    """The same in words."""
    limit: str = ""
    """Why `low` is the least, where that is not plain."""

    def allowed(self) -> str:
        """The values allowed, in words."""
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "choices":
            return f"one or more of {', '.join(self.choices)}"
        if self.kind == "text":
            return self.form
        noun = {"int": "an integer", "float": "a number"}[self.kind]
        extra = " and a power of two" if self.power_of_two else ""
        limit = f"; {self.limit}" if self.limit else ""
        return f"{noun} from {self.low:g} to {self.high:g}{extra}{limit}"


def _count(meaning: str, high: int, unit: str = "", *, power_of_two: bool = False) -> Key:
    return Key("int", meaning, unit, 1, high, power_of_two=power_of_two)


def _cycles(meaning: str, high: int = 1000) -> Key:
    return Key("int", meaning, "cycles", 1, high)


def _choice(meaning: str, *choices: str, settable: bool = True) -> Key:
    return Key("choice", meaning, choices=choices, settable=settable)


def _real(meaning: str, unit: str, high: float, *, required: bool = False) -> Key:
    return Key("float", meaning, unit, 0, high, required=required)


def _way(meaning: str) -> Key:
    return Key("float", f"wire {meaning}", "mm", 0, 1000, required=False)


def _published(meaning: str, unit: str, high: float) -> Key:
    return Key("float", meaning, unit, 0, high, required=False, settable=False)


_WEIGHTS = ("ternary", "int2", "int3", "int4", "int6", "int8")
_ROUNDING = rf"ternary|(?:{'|'.join(_WEIGHTS)}):[1-9][0-9]*"
"""One rounding as `--weights` takes it (`lowering/onnx/weights/rounding.py`)."""
INPUT_FORMATS = ("int8", "int16", *BLOCK_FORMATS)
"""What the input of a single matrix can be told to have."""
_INPUT = rf"[^=,]+=(?:{'|'.join(INPUT_FORMATS)})"
_INPUTS = rf"{_INPUT}(?:,{_INPUT})*"
_BLOCKS = rf"[^=,;]+=(?:all|{RANGES})"
_WIDE = rf"{_BLOCKS}(?:;{_BLOCKS})*"
_SITES = ("all", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SECTIONS: dict[str, str] = {
    "technology": "Process",
    "clock": "Clock",
    "array": "Matrix units (tiles), H-Units and vector units",
    "l_unit": "L-Unit: ROM with low-precision multipliers",
    "h_unit": "H-Unit: SRAM for adapters and KV cache, with attention multipliers",
    "external": "Memory outside the die, and what the die's own cells keep",
    "vector": "Vector unit: norms, rotary embedding, softmax, activation functions",
    "network": "On-chip network",
    "stage": "Register stages that the latencies are derived from",
    "formats": "Number formats",
    "latency": "Latencies",
    "area": "Area",
    "energy": "Energy",
    "power": "Power",
    "policy": "Placement policy",
    "published": "Published figures that support formulas and judge results; not settable",
}
"""Sections of parameters in the order they are reported, with their headings."""

KEYS: dict[str, Key] = {
    "technology.node_nm": Key("int", "process node", "nm", 1, 250, settable=False),
    "clock.frequency_hz": Key("int", "clock of the whole chip", "Hz", 1_000_000, 10_000_000_000),
    "array.rows": Key(
        "int", "rows of a mesh of units, the vector rows included", "", 1, 255, required=False
    ),
    "array.columns": Key("int", "columns of a mesh of units", "", 1, 256, required=False),
    "array.vector_rows": Key(
        "int", "rows of vector units, in the centre of the mesh", "", 1, 15, required=False
    ),
    "array.matrix_units": _count(
        "matrix units, which are tiles; in a mesh it follows rows and columns", 65536
    ),
    "array.vector_units": _count("vector units; in a mesh it follows rows and columns", 4096),
    "array.l_units": _count("L-Units in a matrix unit", 4096),
    "array.h_units": _count("H-Units", 65536, power_of_two=True),
    "array.attention": _choice(
        "where attention and adapters are multiplied: in H-Units of their own, or with the "
        "adders of the matrix units",
        "own",
        "shared",
        settable=False,
    ),
    "l_unit.lanes": _count(
        "multipliers of one weight plane", 1024, "multiplications/cycle", power_of_two=True
    ),
    "l_unit.cell": _choice(
        "what a ROM cell holds: an unsigned digit, or -1, 0, +1", "uint", "ternary", settable=False
    ),
    "l_unit.rom": _choice(
        "ROM as memory of fixed size, or as synthesised logic", "array", "logic", settable=False
    ),
    "l_unit.bank_words": _count("words of a ROM bank", 2**24, "words"),
    "l_unit.bank_bits": _count("bits of a word of a ROM bank", 65536, "bit"),
    "l_unit.plane_bits": Key("int", "bits of a weight that one pass takes", "bit", 1, 8),
    "l_unit.pass_bits": Key("int", "bits of an activation that one pass takes", "bit", 1, 16),
    "l_unit.accumulators": Key(
        "int",
        "sums that it keeps besides that of the step at hand: products of no more steps take their "
        "rows in rounds, as their inputs come",
        "",
        0,
        256,
        required=False,
    ),
    "l_unit.group": Key(
        "int",
        "weights that share a scale, as published; absent where a whole matrix does",
        "weights",
        1,
        65536,
        required=False,
        settable=False,
    ),
    "l_unit.rom_bits": _count("ROM: codes, scales and zero points together", 2**40, "bit"),
    "l_unit.gigabyte": Key(
        "int", "how a published GB is read", "bytes", 10**9, 2**30, required=False
    ),
    "h_unit.attention_lanes": _count(
        "elements of the KV cache read and multiplied", 4096, "elements/cycle", power_of_two=True
    ),
    "h_unit.query_parallel": _count("query heads that each of those elements serves", 64, "heads"),
    "h_unit.multiplier_bits": Key(
        "int", "bits of each operand of its multipliers", "bit", 4, 32, power_of_two=True
    ),
    "h_unit.sram_bytes": _count("SRAM of an H-Unit: adapters and KV cache", 2**36, "bytes"),
    "h_unit.kv_port_bytes": _count("KV cache written", 4096, "bytes/cycle"),
    "h_unit.load_bytes": _count("adapter written by the chip's load port", 4096, "bytes/cycle"),
    "external.kv_on_die_tokens": Key(
        "int",
        "tokens whose keys and values stay on the die",
        "tokens",
        1,
        2**24,
        required=False,
        limit="multiples of array.h_units, since tokens go round the H-Units. 0, with all of them "
        "outside, is not modelled: schedule and hardware begin with tokens on the die",
    ),
    "external.bytes_per_cycle": Key(
        "int", "traffic with external memory", "bytes/cycle", 1, 65536, required=False
    ),
    "external.latency_cycles": Key(
        "int", "address to first byte of external memory", "cycles", 1, 10_000, required=False
    ),
    "external.retention_us": Key(
        "float", "time that an on-die cell keeps its value", "us", 0, 1e9, required=False
    ),
    "vector.lanes": _count("lanes of one vector unit", 4096, "lanes"),
    "vector.sram_bytes": _count("SRAM of one vector unit: intermediate values", 2**36, "bytes"),
    "network.hop_cycles": _cycles("from one unit to the next, with a register in each", 100),
    "network.results_per_cycle": _count("row results delivered", 65536, "results/cycle"),
    "network.wire_ps_per_mm": Key(
        "float", "delay of a wire with repeaters", "ps/mm", 1, 10_000, required=False
    ),
    "network.adder_ps": Key(
        "float", "delay of an adder that results pass on their way", "ps", 1, 10_000, required=False
    ),
    "network.reach_mm": _way("from the vector units to the farthest matrix unit"),
    "network.row_mm": _way("from the outermost vector unit to the middle of all, and back"),
    "network.port_mm": _way("from the vector units to the token port"),
    "stage.rom_access_cycles": _cycles("address to word of a ROM bank", 100),
    "stage.sram_access_cycles": _cycles("address to word of an SRAM", 100),
    "stage.adder_levels_per_cycle": _count("levels of an adder tree in a cycle", 32, "levels"),
    "formats.weights": Key("choices", "codes of the matrices in the layers", choices=_WEIGHTS),
    "formats.head_weights": Key(
        "choices", "codes of an LM head and of a quantised embedding", choices=_WEIGHTS
    ),
    "formats.adapter": _choice("matrices of an adapter", "fp8", "int8", "int6", "ternary"),
    "formats.activations": _choice(
        "activations of engraved layers; half8 and mxint8 have an exponent a block",
        "int4",
        "int8",
        "int16",
        "fp8",
        *BLOCK_FORMATS,
    ),
    "formats.activations_of": Key(
        "text",
        "inputs of single matrices in formats of their own, set by activations.NAME=FORMAT",
        required=False,
        settable=False,
        pattern=_INPUTS,
        form="NAME=FORMAT, several with commas",
    ),
    "formats.wide": Key(
        "text",
        "blocks of inputs of single matrices whose codes have 16 bits, set by wide.NAME=BLOCKS",
        required=False,
        settable=False,
        pattern=_WIDE,
        form="NAME=BLOCKS, several with semicolons",
    ),
    "formats.block": Key(
        "int",
        "activations that share an exponent, in formats that have one a block",
        "",
        1,
        1024,
        required=False,
        power_of_two=True,
    ),
    "formats.kv": _choice("keys and values in the cache", *KV_FORMATS),
    "formats.probabilities": _choice(
        "attention weights; uint8 or uint16 as the activations, or bytes at one of five places",
        "uint8",
        "uint16",
        "places8",
    ),
    "formats.embedding": _choice("embeddings that arrive as floats", "int16", "int8"),
    "formats.fraction_bits": Key(
        "int",
        "fraction of 32-bit fixed point where magnitudes of the model ask for no other",
        "bit",
        8,
        30,
    ),
    "latency.issue": _cycles("last condition of a beat to its start, where it is not known ahead"),
    "latency.broadcast": _cycles("activation buffer to the L-Units"),
    "latency.mac_pipeline": _cycles("fill of the L-Unit's pipeline"),
    "latency.reduce": _cycles("accumulators to the vector units through the network"),
    "latency.requantise": _cycles("fill of a requantiser lane"),
    "latency.rom_read": _cycles("random access to a ROM row"),
    "latency.attention_pipeline": _cycles("fill of the H-Unit's pipeline"),
    "latency.kv_write": _cycles("fill of the KV write port"),
    "latency.vector_pipeline": _cycles("fill of one pass of the vector units"),
    "latency.vector_reduce": _cycles("tree over all lanes at the end of a reducing pass"),
    "latency.table_lookup": _cycles("scalar table function with interpolation"),
    "latency.sample": _cycles("arg-max result to the token port"),
    "latency.block_exponent": Key(
        "int",
        "elements of a block to their exponent and step",
        "cycles",
        1,
        1000,
        required=False,
    ),
    "latency.power_wake": Key(
        "int", "ROM bank switched on to its first word", "cycles", 1, 1_000_000, required=False
    ),
    "latency.power_sleep": Key(
        "int", "ROM bank switched off", "cycles", 1, 1_000_000, required=False
    ),
    "area.l_unit_mm2": _real("one L-Unit", "mm2", 1000),
    "area.l_unit_rom_share": _real("share of an L-Unit that is its ROM", "", 1),
    "area.h_unit_mm2": _real("one H-Unit", "mm2", 1000),
    "area.vector_unit_mm2": _real("one vector unit", "mm2", 1000),
    "area.vector_lane_mm2": _real("what a lane of a vector unit adds to it", "mm2", 1000),
    "area.other_share": _real("share of the die that is none of these", "", 0.99),
    "area.rom_mm2": _real("ROM of the chip", "mm2", 100_000),
    "area.sram_mm2": _real("SRAM or eDRAM of the chip", "mm2", 100_000),
    "area.logic_mm2": _real("multipliers, adders and vector units", "mm2", 100_000),
    "area.die_mm2": _real("the die", "mm2", 100_000, required=True),
    "area.rom_mib_per_mm2": _real("density of the ROM alone", "MiB/mm2", 1000),
    "area.fused_rom_mbit_per_mm2": _real("ROM density of an L-Unit", "Mbit/mm2", 10_000),
    "energy.l_unit_cycle_pj": _real("busy cycle of an L-Unit", "pJ", 1_000_000),
    "energy.l_unit_cycle_8bit_pj": _real(
        "the same, with activations of two passes", "pJ", 1_000_000
    ),
    "energy.h_unit_product_pj": _real("product of an H-Unit's multiplier, added up", "pJ", 1000),
    "energy.h_unit_byte_pj": _real("byte read from or written to an H-Unit's SRAM", "pJ", 1000),
    "energy.vector_operation_pj": _real("element in a pass of a vector unit's lane", "pJ", 1000),
    "energy.vector_byte_pj": _real("byte read from or written to a vector unit's SRAM", "pJ", 1000),
    "energy.external_byte_pj": _real("byte to or from external memory", "pJ", 100_000),
    "power.gated_on_share": _real("share of the ROM that is on while banks are gated", "", 1),
    "power.rom_on_w": _real("all ROM banks, on", "W", 100_000),
    "power.rom_bank_mw": _real("one ROM bank, on", "mW", 100_000),
    "power.rest_w": _real("all but the ROM", "W", 100_000),
    "power.l_unit_mw": _real("busy L-Unit", "mW", 100_000),
    "power.l_units_peak_w": _real("all L-Units busy", "W", 100_000),
    "policy.placement": _choice(
        "matrices on all tiles, or each on as few as hold it", "spread", "packed"
    ),
    "policy.adapter_sites": Key(
        "choices", "matrices that adapter slots stand beside, unless told", choices=_SITES
    ),
    "policy.embedding_store": _choice("where an engraved embedding counts", "rom", "extra-rom"),
    "policy.weights": Key(
        "text",
        "how a float model is meant to be quantised, as --weights takes it",
        required=False,
        settable=False,
    ),
    "policy.head_weights": Key(
        "text",
        "what an LM head in floating point is engraved as where other matrices are quantised",
        pattern=_ROUNDING,
        form=f"CODE:GROUP with CODE one of {', '.join(_WEIGHTS)}; or ternary",
    ),
    "policy.emit": _choice("last stage of a compile, unless told", "program", "hw", "sv"),
    "policy.head_store": _choice("where an engraved LM head counts", "rom", "extra-rom"),
    "policy.in_flight": Key(
        "int",
        "tokens that the chip works on at once: prompt tokens that follow each other, each in rows "
        "of its own of the memories of values",
        "tokens",
        1,
        8,
    ),
    "policy.rom_logic": Key(
        "choice",
        "how a ROM bank that is logic is written: its truth table, or gates that its bits share",
        choices=("table", "shared"),
        required=False,
    ),
    "policy.expert_power": Key(
        "choice",
        "what of a mixture's experts is switched on where ROM banks are gated: all with the layer, "
        "or the banks that the chosen ones reach",
        choices=("layer", "chosen"),
        required=False,
    ),
    "published.rom_gb": _published("ROM of the chip", "GB", 10_000),
    "published.rom_mib": _published("ROM of the chip", "MiB", 10_000_000),
    "published.adapter_kv_sram_mb": _published("SRAM for adapters and KV", "MB", 1_000_000),
    "published.vector_sram_mb": _published("SRAM for intermediate values", "MB", 1_000_000),
    "published.die_mm2": _published("the die", "mm2", 100_000),
    "published.rom_share": _published("die share of the ROM", "", 1),
    "published.sram_share": _published("die share of the SRAM", "", 1),
    "published.logic_share": _published("die share of the compute logic", "", 1),
    "published.periphery_share": _published("share of a macro that is not its ROM", "", 1),
    "published.transistors_billion": _published("transistors of the chip", "10^9", 10_000),
    "published.rom_70_mib_per_mm2": _published("ROM with 70 % zero bits", "MiB/mm2", 1000),
    "published.rom_65_mib_per_mm2": _published("ROM with 65 % zero bits", "MiB/mm2", 1000),
    "published.rom_kbit_per_mm2": _published("macro", "kbit/mm2", 1_000_000),
    "published.model_14nm_mm2": _published("ROM of the model, at 14 nm", "mm2", 100_000),
    "published.edram_14nm_mm2": _published("eDRAM, at 14 nm", "mm2", 100_000),
    "published.l_unit_share": _published("die share of the L-Units", "", 1),
    "published.h_unit_share": _published("die share of the H-Units", "", 1),
    "published.vector_share": _published("die share of the vector units", "", 1),
    "published.l_unit_mm2": _published("L-Unit with B-ROM and compute in one cell", "mm2", 1000),
    "published.l_unit_sram_design_mm2": _published("L-Unit with SRAM and compute", "mm2", 1000),
    "published.l_unit_rom_design_mm2": _published("L-Unit with ROM and compute", "mm2", 1000),
    "published.l_unit_brom_design_mm2": _published("L-Unit with B-ROM and compute", "mm2", 1000),
    "published.l_unit_mw": _published("L-Unit with B-ROM and compute in one cell", "mW", 1000),
    "published.l_unit_sram_design_mw": _published("L-Unit with SRAM and compute", "mW", 1000),
    "published.l_unit_rom_design_mw": _published("L-Unit with ROM and compute", "mW", 1000),
    "published.l_unit_brom_design_mw": _published("L-Unit with B-ROM and compute", "mW", 1000),
    **{
        f"published.{memory}_{depth}_mbit_per_mm2": _published(
            f"{memory.upper()} macro, {depth} x 64 bit", "Mbit/mm2", 10_000
        )
        for memory in ("sram", "rom")
        for depth in (1024, 2048, 4096, 8192)
    },
    "published.power_w": _published("the chip", "W", 100_000),
    "published.ungated_power_w": _published("the chip, all ROM banks on", "W", 100_000),
    "published.gated_power_w": _published("the chip, ROM banks gated by layer", "W", 100_000),
    "published.rom_tb_per_s": _published("ROM bandwidth, all banks", "TB/s", 1_000_000),
    "published.high_tops_per_w": _published("the better of two efficiencies", "TOPS/W", 1e6),
    "published.low_tops_per_w": _published("the other of two efficiencies", "TOPS/W", 1e6),
    "published.external_saving": _published("external KV accesses saved", "", 1),
    "published.low_adapter_share": _published("parameters of adapters, at least", "", 1),
    "published.high_adapter_share": _published("parameters of adapters, at most", "", 1),
    "published.tokens_per_s": _published("decode, as published", "tokens/s", 1e9),
    "published.low_a100_speedup": _published("speed over an A100, one source", "", 1e6),
    "published.high_a100_speedup": _published("speed over an A100, another source", "", 1e6),
    "published.token_mj": _published("energy of a token", "mJ", 1_000_000),
    "published.decode_tokens_per_s": _published("decode without KV", "tokens/s", 1e9),
    "published.decode_1k_tokens_per_s": _published("decode, 1K cached tokens", "tokens/s", 1e9),
    **{
        f"published.length_{length}_tokens_per_s": _published(
            f"series by input length, {length.upper()}", "tokens/s", 1e9
        )
        for length in ("256", "512", "1k", "2k")
    },
    "published.first_token_256_ms": _published("first token, prompt of 256", "ms", 1e6),
    "published.first_token_4k_ms": _published("first token, prompt of 4K", "ms", 1e6),
    "published.default_context_tokens": _published("context of the KV cache", "tokens", 1e9),
    **{
        f"published.context_{size}_mb_rank_{rank}_tokens": _published(
            f"longest context with {size} MB of SRAM and an adapter of rank {rank}", "tokens", 1e9
        )
        for size, rank in ((64, 16), (128, 16), (256, 16), (64, 64))
    },
}
"""Every parameter by its full name, in the order it is reported."""

ENTRY_KEYS = ("value", "origin", "source", "formula", "range", "reason")
ORIGINS = ("paper", "secondary", "derived", "assumed")
TARGET_KEYS = ("name", "description")
WIRES = ("network.wire_ps_per_mm", "network.adder_ps")
"""What latencies of distances hang on; `intaglio targets` states them at both ends."""
MESH = ("array.rows", "array.columns", "array.vector_rows")
"""Keys of a mesh: all of them or none."""
FOLLOWS_MESH = ("array.matrix_units", "array.vector_units")
"""What a mesh determines; without one these are settable."""
