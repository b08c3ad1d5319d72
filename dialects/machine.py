"""The chip as the passes see it: geometry, formats and latencies, without origins or file syntax.

A `Machine` is what remains of a target description (backend/targets) after options are applied. It
travels in the IR as the `fabric.machine` operation, so that every pass runs from the command line
on a module alone. Units: cycles for latencies, bits and bytes for memories, multiplications a cycle
for lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

from intaglio.dialects.formats import FORMATS, HEAD_FORMATS
from intaglio.dialects.json_file import is_list

KV_FORMATS = ("int8", "int16", "fp8", *HEAD_FORMATS)
"""Formats of keys and values that a chip may have; those of fp8 have no scales, those of half8 a
byte a head and token."""

COUNTS = (
    *("clock_hz", "tiles", "l_units", "lanes", "plane_bits", "pass_bits", "rom_bits"),
    *("bank_words", "bank_bits", "h_units", "attention_lanes", "query_parallel"),
    *("multiplier_bits", "sram_bytes", "kv_port_bytes", "load_bytes"),
    *("vector_lanes", "vector_sram_bytes", "results_per_cycle"),
)
"""Fields of which there is at least one."""


def plain_numerators(activations: object) -> str:
    """Format of softmax's numerators that are no bytes at places: as wide as the activations."""
    return "uint16" if activations == "int16" else "uint8"


class Early(NamedTuple):
    """Cycles that instructions may start before what is reduced for them is there, since they read
    it so much later.

    Attributes:
        product: a product whose results a norm's factor is for.
        sums: a weighted sum, whose results are divided by the sums of the weights.
    """

    product: int = 0
    sums: int = 0


@dataclass(frozen=True)
class Machine:
    """Geometry, formats and latencies of one chip.

    The array has `tiles` matrix units; each holds `l_units` L-Units (ROM fused with `lanes`
    multipliers of one cell's weight by `pass_bits`-bit activations). Beside them stand `h_units`
    H-Units (SRAM for adapters and KV with `attention_lanes` multipliers of two operands of
    `multiplier_bits`). `vector_lanes` counts the lanes of all vector units together.
    """

    name: str
    clock_hz: int
    # Array
    tiles: int
    l_units: int
    # L-Unit
    lanes: int
    cell: str
    """What a ROM cell holds and a lane multiplies by: `uint`, an unsigned digit of `plane_bits`
    bits, of which wider codes take several planes; `ternary`, -1, 0 or +1 (stored in two bits),
    of which wider codes take one for each digit in balanced ternary (`dialects/trits.py`)."""
    plane_bits: int
    pass_bits: int
    rom: str
    """`array`: memory of fixed size, so that padding counts; `logic`: gates, so that only weights
    that exist count, for the chip in all."""
    rom_bits: int
    """Capacity of one L-Unit's ROM: codes, group scales and zero points together."""
    bank_words: int
    """Words of a ROM bank, the unit that is switched on and off and synthesised as logic."""
    bank_bits: int
    """Bits of a word of a ROM bank."""
    # H-Unit
    h_units: int
    attention_lanes: int
    query_parallel: int
    """Query heads of one KV head that a fetched key or value element serves in one cycle."""
    multiplier_bits: int
    """Bits of each operand of an H-Unit's multiplier; wider operands take several passes."""
    sram_bytes: int
    """SRAM of one H-Unit: adapters and KV cache."""
    kv_port_bytes: int
    """Bytes of the KV cache one H-Unit writes in a cycle."""
    load_bytes: int
    """Bytes of an adapter that the chip's load port takes in a cycle."""
    kv_on_die: int
    """Tokens whose keys and values stay on the die, the first ones; 0: all."""
    external_bytes: int
    """Bytes a cycle between chip and external memory; 0 without."""
    external_latency: int
    """From the address to the first byte from external memory, cycles."""
    retention_cycles: int
    """Cycles after which an on-die key or value that nobody read is lost; 0: never."""
    shared_arrays: int
    """1: attention and adapters use the matrix tiles' adders, never at the same time as them."""
    # Vector units
    vector_lanes: int
    vector_sram_bytes: int
    """SRAM of all vector units together: intermediate values and attention scores."""
    # Network
    results_per_cycle: int
    """Row results that the reduction network delivers to the vector units in a cycle."""
    # Formats
    weights: tuple[str, ...]
    """Codes of the matrices in the layers."""
    head_weights: tuple[str, ...]
    """Codes of an LM head and of an embedding table with group scales."""
    adapter: str
    """Format of an adapter's matrices in SRAM: fp8, int8, int6 or ternary."""
    activations: str
    """Of products with the matrices; half8 and mxint8 have an exponent a block."""
    kv: str
    probabilities: str
    embedding: str
    """Format of embeddings that arrive as floats: int16 or int8."""
    fraction_bits: int
    """Of values of 32 bits whose magnitudes ask for no others."""
    # Policy
    placement: str
    """`spread`: every matrix on all tiles; `packed`: each on as few tiles as hold it."""
    adapter_sites: tuple[str, ...]
    """Parts of the names of the matrices that adapters are for, unless told; none: all."""
    embedding_store: str
    """`rom`, or `extra-rom`: banks made deeper than published, the surplus reported."""
    head_store: str
    # Latencies, cycles
    issue: int
    """Between the last condition an instruction waits for and its start."""
    broadcast: int
    """From activation buffer to the L-Units."""
    mac_pipeline: int
    """ROM read, multiply, add, group scale, accumulate: fill of the L-Unit's pipeline."""
    reduce: int
    """From the L-Units' accumulators through the reduction network to the vector unit."""
    requantise: int
    """Pipeline of a requantiser lane."""
    rom_read: int
    """Random access to a ROM row (embedding)."""
    attention_pipeline: int
    """SRAM read, multiply, add, accumulate: fill of the H-Unit's pipeline."""
    kv_write: int
    """Fill of the KV write port."""
    vector_pipeline: int
    """Fill of one pass of the vector unit."""
    vector_reduce: int
    """Tree over the lanes at the end of a reducing pass."""
    table_lookup: int
    """Scalar table function (reciprocal, reciprocal square root) with interpolation."""
    sample: int
    """From the arg-max result to the token port."""
    power_wake: int
    """From switching a ROM bank on to its first word; 0: banks are always on."""
    power_sleep: int
    """To switch a ROM bank off."""
    accumulators: int = 0
    """Sums that an L-Unit keeps besides that of the step at hand."""
    block: int = 0
    """Activations that share an exponent, in formats that have one a block."""
    block_exponent: int = 0
    """From a block's elements to its exponent and step."""
    # Policy of the hardware
    rom_logic: str = "table"
    """How a ROM bank that is logic is written: `table`, its truth table; `shared`, gates that its
    bits share."""
    expert_power: str = "layer"
    """What of a mixture's experts is switched on where ROM is gated: `layer`, all with the rest of
    the layer; `chosen`, the banks that a token's chosen experts reach, once they are known."""
    activations_of: tuple[str, ...] = ()
    """`NAME=FORMAT` for matrices whose inputs have another format than `activations`, by the names
    of `lowering/step/input_formats.py`; the first that fits a matrix decides."""
    wide_of: tuple[str, ...] = ()
    """`NAME=BLOCKS` for matrices of whose inputs some blocks, or `all`, have codes of 16 bits, by
    the same names."""
    contexts: int = 1
    """Tokens that the chip works on at once, each in rows of its own of the memories of values."""
    fractions: str = "model"
    """`model`: values whose magnitudes ask for it have other fractions than `fraction_bits`
    (`lowering/step/fractions.py`); `set`: none has."""

    def check(self) -> None:
        """Whether passes can work with the figures.

        A target file allows less (`backend/target/schema.py`); what emitted hardware needs beyond
        that, such as powers of two, its units say (`backend/hw/`).

        Raises:
            ValueError: there is none of what a chip has at least one of.
        """
        for name in COUNTS:
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"machine description: {name} is {value}, at least 1 is needed")

    @property
    def scaled_activations(self) -> str:
        """Format of activations that have one scale a vector or head whatever `activations` is:
        queries, inputs of adapters."""
        return "int8" if self.has_blocks else self.activations

    @property
    def queries(self) -> str:
        """Format of queries, which is that of keys where these have an exponent a head; wider
        activations keep theirs."""
        half = self.kv in HEAD_FORMATS and self.scaled_activations == "int8"
        return self.kv if half else self.scaled_activations

    def probabilities_beside(self, kv: str) -> str:
        """Format of softmax's numerators before values of format `kv`. Bytes at places take values
        with an exponent a head; where a graph rounds its cache itself they are as wide as the
        activations."""
        if self.probabilities != "places8" or kv in HEAD_FORMATS:
            return self.probabilities
        return plain_numerators(self.activations)

    @property
    def behind(self) -> int:
        """Cycles from the elements of a pass to what the tables make of what is reduced of them."""
        return self.vector_reduce + self.table_lookup

    @property
    def early(self) -> Early:
        """How much later than at their start instructions read what is reduced.

        What an instruction reads at its start it reads in the cycle after it. A product reads the
        factor of its results when the first ones leave the tiles: two cycles after a step has gone
        through broadcast and pipeline. A weighted sum looks up what its results are over when the
        sums are there where these follow the weights, with bytes at places.
        """
        sums = self.behind if self.probabilities == "places8" else 0
        return Early(self.broadcast + self.mac_pipeline + 1, sums)

    @property
    def has_blocks(self) -> bool:
        """Whether activations have an exponent a block."""
        return self.activations in FORMATS and FORMATS[self.activations].by_block

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, in declaration order."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, object]) -> Machine:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a name is unknown or missing, or a value is of another kind than its own.
        """
        names = {f.name for f in fields(Machine)}
        optional = {f.name for f in fields(Machine) if f.default is not MISSING}
        if wrong := sorted((set(values) ^ names) - (optional - set(values))):
            raise ValueError(f"machine description: unknown or missing {', '.join(wrong)}")
        given: dict[str, Any] = {n: tuple(v) if is_list(v) else v for n, v in values.items()}
        for field in fields(Machine):
            name, kind = field.name, str(field.type)
            if name in given and not _is_kind(given[name], kind):
                raise ValueError(
                    f"machine description: {name} is {given[name]!r}, not {_KINDS[kind]}"
                )
        return Machine(**given)


_KINDS = {"int": "an integer", "str": "a text", "tuple[str, ...]": "a list of texts"}
"""What fields hold, as messages say it."""


def _is_kind(value: object, kind: str) -> bool:
    match kind:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case _:
            return is_list(value) and all(isinstance(one, str) for one in value)
