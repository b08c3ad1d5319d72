"""What a target file may contain: every section and key with its type, unit, meaning and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA = 1
"""Version of the target file format that this compiler reads."""

Kind = Literal["int", "float", "choice", "choices"]


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

    def allowed(self) -> str:
        """The values allowed, in words."""
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "choices":
            return f"one or more of {', '.join(self.choices)}"
        noun = {"int": "an integer", "float": "a number"}[self.kind]
        extra = " and a power of two" if self.power_of_two else ""
        return f"{noun} from {self.low:g} to {self.high:g}{extra}"


def _count(meaning: str, high: int, unit: str = "", *, power_of_two: bool = False) -> Key:
    return Key("int", meaning, unit, 1, high, power_of_two=power_of_two)


def _cycles(meaning: str, high: int = 1000) -> Key:
    return Key("int", meaning, "cycles", 1, high)


def _choice(meaning: str, *choices: str, settable: bool = True) -> Key:
    return Key("choice", meaning, choices=choices, settable=settable)


def _real(meaning: str, unit: str, high: float) -> Key:
    return Key("float", meaning, unit, 0, high)


def _published(meaning: str, unit: str, high: float) -> Key:
    return Key("float", meaning, unit, 0, high, required=False, settable=False)


SECTIONS: dict[str, str] = {
    "technology": "Process",
    "clock": "Clock",
    "array": "Matrix units around a central row of vector units",
    "l_unit": "L-Unit: a ROM bank fused with low-precision multipliers",
    "h_unit": "H-Unit: SRAM for adapters and KV cache, with attention multipliers",
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
    "array.rows": _count("rows of units, the vector rows included", 255),
    "array.columns": _count("columns of units", 256),
    "array.vector_rows": _count("rows of vector units, in the centre", 15),
    "array.matrix_units": Key(
        "int", "matrix units; follows rows and columns", "", 1, 65536, settable=False
    ),
    "array.vector_units": Key(
        "int", "vector units; follows rows and columns", "", 1, 4096, settable=False
    ),
    "array.l_units": _count("L-Units in a matrix unit", 4096),
    "l_unit.lanes": _count(
        "multipliers of one weight plane", 1024, "multiplications/cycle", power_of_two=True
    ),
    "l_unit.plane_bits": Key("int", "bits of a weight that one pass takes", "bit", 1, 8),
    "l_unit.pass_bits": Key("int", "bits of an activation that one pass takes", "bit", 1, 16),
    "l_unit.group": Key(
        "int", "weights that share a scale, as published", "weights", 1, 65536, settable=False
    ),
    "l_unit.rom_bits": _count("ROM bank: codes, scales and zero points together", 2**40, "bit"),
    "l_unit.gigabyte": Key(
        "int", "how a published GB is read", "bytes", 10**9, 2**30, required=False
    ),
    "h_unit.attention_lanes": _count(
        "elements of the KV cache read and multiplied", 4096, "elements/cycle", power_of_two=True
    ),
    "h_unit.query_parallel": _count("query heads that each of those elements serves", 64, "heads"),
    "h_unit.sram_bytes": _count("SRAM of a matrix unit: adapters and KV cache", 2**36, "bytes"),
    "h_unit.kv_port_bytes": _count("KV cache written", 4096, "bytes/cycle"),
    "vector.lanes": _count("lanes of one vector unit", 4096, "lanes"),
    "vector.sram_bytes": _count("SRAM of one vector unit: intermediate values", 2**36, "bytes"),
    "network.hop_cycles": _cycles("from one unit to the next", 100),
    "network.results_per_cycle": _count("row results delivered", 65536, "results/cycle"),
    "stage.rom_access_cycles": _cycles("address to word of a ROM bank", 100),
    "stage.sram_access_cycles": _cycles("address to word of an SRAM", 100),
    "stage.adder_levels_per_cycle": _count("levels of an adder tree in a cycle", 32, "levels"),
    "formats.weights": Key(
        "choices", "codes of engraved weights", choices=("int2", "int4", "int8", "ternary")
    ),
    "formats.activations": _choice("activations of engraved layers", "int8", "int16", "fp8"),
    "formats.kv": _choice("keys and values in the cache", "int8", "int16", "fp8"),
    "formats.probabilities": _choice(
        "attention weights; follows the activations", "uint8", "uint16", settable=False
    ),
    "formats.embedding": _choice("embeddings that arrive as floats", "int16", "int8"),
    "formats.fraction_bits": Key("int", "fraction of 32-bit fixed point", "bit", 8, 24),
    "latency.issue": _cycles("last condition of an instruction to its start"),
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
    "area.l_unit_mm2": _real("one L-Unit", "mm2", 1000),
    "area.h_unit_mm2": _real("one H-Unit", "mm2", 1000),
    "area.vector_unit_mm2": _real("one vector unit", "mm2", 1000),
    "area.other_share": _real("share of the die that is none of these", "", 0.99),
    "area.die_mm2": _real("the die", "mm2", 100_000),
    "area.fused_rom_mbit_per_mm2": _real("ROM density of an L-Unit", "Mbit/mm2", 10_000),
    "energy.l_unit_cycle_pj": _real("busy cycle of an L-Unit", "pJ", 1_000_000),
    "power.l_unit_mw": _real("busy L-Unit", "mW", 100_000),
    "power.l_units_peak_w": _real("all L-Units busy", "W", 100_000),
    "policy.embedding_store": _choice("where an engraved embedding counts", "rom", "extra-rom"),
    "policy.emit": _choice("last stage of a compile, unless told", "program", "hw", "sv"),
    "policy.head_store": _choice("where an engraved LM head counts", "rom", "extra-rom"),
    "published.rom_gb": _published("ROM of the chip", "GB", 10_000),
    "published.adapter_kv_sram_mb": _published("SRAM for adapters and KV", "MB", 1_000_000),
    "published.vector_sram_mb": _published("SRAM for intermediate values", "MB", 1_000_000),
    "published.die_mm2": _published("the die", "mm2", 100_000),
    "published.l_unit_share": _published("die share of the L-Units", "", 1),
    "published.h_unit_share": _published("die share of the H-Units", "", 1),
    "published.vector_share": _published("die share of the vector units", "", 1),
    "published.l_unit_sram_design_mm2": _published("L-Unit with SRAM and compute", "mm2", 1000),
    "published.l_unit_rom_design_mm2": _published("L-Unit with ROM and compute", "mm2", 1000),
    "published.l_unit_brom_design_mm2": _published("L-Unit with B-ROM and compute", "mm2", 1000),
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
}
"""Every parameter by its full name, in the order it is reported."""

ENTRY_KEYS = ("value", "origin", "source", "formula", "range", "reason")
ORIGINS = ("paper", "secondary", "derived", "assumed")
TARGET_KEYS = ("name", "description")
