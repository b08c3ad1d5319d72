"""Names of the hardware's files in an output folder; `emit_hardware` says what is in them."""

from __future__ import annotations

FOLDER = "hw"
IR = f"{FOLDER}/chip.mlir"
VERILOG = (f"{FOLDER}/chip.sv", f"{FOLDER}/memories.sv")
WAIVERS = f"{FOLDER}/waivers.vlt"
ROMS = f"{FOLDER}/images/roms.bin"
ROM_INDEX = f"{FOLDER}/images/roms.json"
FILE_LIST = f"{FOLDER}/filelist.f"
VERILATOR_LIST = f"{FOLDER}/verilator.f"
TESTBENCH = f"{FOLDER}/testbench.sv"
EXTERNAL_BANKS = f"{FOLDER}/external_banks.csv"
HEX = f"{FOLDER}/hex"

_NAMED = (
    IR,
    *VERILOG,
    WAIVERS,
    ROMS,
    ROM_INDEX,
    FILE_LIST,
    VERILATOR_LIST,
    TESTBENCH,
    EXTERNAL_BANKS,
)


def is_hardware_file(name: str) -> bool:
    """Whether a name, relative to the output folder, is one of them."""
    if name in _NAMED:
        return True
    return name.startswith(f"{HEX}/") and name.endswith(".hex")
