"""The writer of waveforms, and what is said about their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.runtime.engines.vcd import Signal, VCDWriter, cycle_range, waveform_format

SIGNALS = (
    Signal(("clk",), 1),
    Signal(("tile0/count", "tile0/bank/copy"), 8),
    Signal(("tile0/bank/row[1]",), 70),
    Signal(("go",), 1),
)

EXPECTED = f"""$version Intaglio $end
$timescale 1ns $end
$scope module chip $end
$var wire 1 ! clk $end
$var wire 1 $ go $end
$scope module tile0 $end
$var wire 8 " count [7:0] $end
$scope module bank $end
$var wire 8 " copy [7:0] $end
$var wire 70 # row[1] [69:0] $end
$upscope $end
$upscope $end
$upscope $end
$enddefinitions $end
#20
$dumpvars
1!
b0 "
b{(1 << 67) + 1:b} #
$end
#25
0!
1$
#40
b11111111 "
0$
1$
"""


def write(path: Path) -> bytes:
    writer = VCDWriter(path, "chip", SIGNALS)
    writer.change(20, [(0, 1), (1, 0), (2, (1 << 67) + 1)])
    writer.change(25, [(0, 0), (1, 0), (3, 1)])
    writer.change(30, [(0, 0), (3, 1)])
    writer.change(40, [(1, 255), (3, 0)])
    writer.change(40, [(1, 255), (3, 1)])
    with pytest.raises(CompilerBug, match="went back"):
        writer.change(39, [(1, 0)])
    writer.close()
    return path.read_bytes()


def test_hierarchy_and_changes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.vcd").decode() == EXPECTED
    assert write(tmp_path / "a.vcd") == write(tmp_path / "b.vcd")


def test_codes_differ(tmp_path: Path) -> None:
    count = 94 + 94**2 + 10
    writer = VCDWriter(tmp_path / "a.vcd", "top", [Signal((f"s{i}",), 1) for i in range(count)])
    writer.close()
    lines = (tmp_path / "a.vcd").read_text().splitlines()
    codes = [line.split()[3] for line in lines if line.startswith("$var")]
    assert len(set(codes)) == count
    assert all("!" <= letter <= "~" for code in codes for letter in code)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the waveform"):
        VCDWriter(tmp_path / "none" / "a.vcd", "top", SIGNALS)
    assert waveform_format(Path("a.VCD"), "rtl") == "vcd"
    assert waveform_format(Path("a.fst"), "verilator") == "fst"
    with pytest.raises(UserError, match=r"cannot write") as error:
        waveform_format(Path("a.fst"), "rtl")
    assert error.value.hint == "it writes .vcd; the verilator engine writes .fst"
    with pytest.raises(UserError, match=r"cannot write") as error:
        waveform_format(Path("a.gz"), "verilator")
    assert error.value.hint == "it writes .vcd and .fst"


def test_cycle_range() -> None:
    assert cycle_range("3:17") == (3, 17)
    assert cycle_range("3:") == (3, None)
    assert cycle_range(":17") == (0, 17)
    assert cycle_range(":") == (0, None)
    for text in ("", "3", "17:3", "-1:3", "a:b", "1:2:3"):
        with pytest.raises(UserError, match="not a range"):
            cycle_range(text)
