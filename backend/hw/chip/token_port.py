"""The token port, which all sequencers obey: takes tokens, gives the next ones, knows positions."""

from __future__ import annotations

from intaglio.backend.hw.wires.signal import Design, ModuleBuilder, choose, mux
from intaglio.backend.hw.wires.widths import index_bits

TOKEN_BITS = 32
"""Width of the token ports."""


def build_token_port(design: Design, position_bits: int) -> ModuleBuilder:
    """The module `token_port`: takes tokens, gives the next ones, knows the position.

    A token is accepted, and its cycle 0 is, when `token_valid` and `token_ready` are 1. The chip is
    ready in the cycle in which the last instruction of the token before has finished and its
    successor, where it is wanted, is there, unless a result waits to be taken; cycles in which it
    waits for the outside world belong to no token.

    Ports:

    - `token_valid`, `token`, `sample` (the token's successor is wanted), `restart` (the token is
      the first of a sequence); out `token_ready`.
    - `next_ready`; out `next_valid`, `next_token`: held until `next_ready`.
    - `idle`: no instruction of the token is left.
    - `result_valid`: the first cycle in which `result`, the next token, can be read.
    - out `accept`, `sampled`: for the sequencers; `running`, `held_token`, `position`: of the
      token at hand, from the cycle after its acceptance on; `busy`.
    """
    m = design.module("token_port", "Accepts tokens, hands out their successors.")
    valid, token = m.input("token_valid", 1), m.input("token", TOKEN_BITS)
    sample, restart = m.input("sample", 1), m.input("restart", 1)
    next_ready, idle = m.input("next_ready", 1), m.input("idle", 1)
    result_valid, result = m.input("result_valid", 1), m.input("result", TOKEN_BITS)

    # The descriptor ROMs need a cycle after reset to show their first word.
    primed = m.register("primed", 1)
    primed.drive(m.constant(1))
    running = m.register("running_q", 1)
    pending = m.register("pending", 1)
    next_valid = (result_valid | pending).named("result_there")
    pending.drive(next_valid & ~next_ready)
    wanted = m.register("result_wanted", 1)
    free = ~running | (idle & (result_valid | ~wanted))
    ready = (primed & free & (~next_valid | next_ready)).named("ready")
    accept = (valid & ready).named("accepted")
    running.drive(accept | ~free)
    wanted.drive(mux(accept, sample, wanted & ~result_valid))

    position = m.register("position_q", position_bits)
    following = m.register("next_position", position_bits)
    here = mux(restart, 0, following)
    position.drive(here, accept)
    following.drive((here + 1).truncate(position_bits), accept)

    m.output("token_ready", ready)
    m.output("next_valid", next_valid)
    held = result.delay(enable=result_valid, name="next_token_q")
    m.output("next_token", mux(result_valid, result, held))
    m.output("accept", accept)
    m.output("sampled", sample)
    m.output("running", running)
    m.output("held_token", token.delay(enable=accept, name="token_q"))
    m.output("position", position)
    m.output("busy", ~free)
    return m


def build_ports_of_tokens(design: Design, position_bits: int, contexts: int) -> ModuleBuilder:
    """The module `token_port` of a chip with contexts.

    As `build_token_port`, but a token is accepted when the context whose turn it is has
    nothing left of the one before it; and one that does not follow the last one, which begins a
    sequence or goes back in it, when nothing is in flight.

    Ports that differ:

    - `restart`: the token does not follow the last one, its position is `restart_position`.
    - out `accepted`: a token is accepted.
    - `in_flight`: contexts in use, 1 at least; taken while nothing is in flight.
    - `idle<c>`: no instruction of the context's token is left.
    - `result_valid`, `result`, with `result_context`: whose successor it is.
    - out `accept<c>`; `live<c>`, `held_token<c>`, `position<c>`: of the context's token, from the
      cycle after its acceptance on; `turn`.
    - out `next_context`, with `next_token`: whose successor it is.
    """
    bits = index_bits(contexts)
    m = design.module("token_port", "Accepts tokens for contexts, hands out their successors.")
    valid, token = m.input("token_valid", 1), m.input("token", TOKEN_BITS)
    sample, restart = m.input("sample", 1), m.input("restart", 1)
    restart_position = m.input("restart_position", position_bits)
    next_ready = m.input("next_ready", 1)
    given = m.input("in_flight", contexts.bit_length())
    idle = [m.input(f"idle{c}", 1) for c in range(contexts)]
    result_valid, result = m.input("result_valid", 1), m.input("result", TOKEN_BITS)
    whose = m.input("result_context", bits)

    primed = m.register("primed", 1)
    primed.drive(m.constant(1))
    pending = m.register("pending", 1)
    next_valid = (result_valid | pending).named("result_there")
    pending.drive(next_valid & ~next_ready)
    running = [m.register(f"running{c}", 1) for c in range(contexts)]
    wanted = [m.register(f"result_wanted{c}", 1) for c in range(contexts)]
    there = [result_valid & (whose == c) for c in range(contexts)]
    free = [
        ~run | (over & (done | ~want))
        for run, over, done, want in zip(running, idle, there, wanted, strict=True)
    ]
    none = free[0]
    for one in free[1:]:
        none = none & one
    used, turn = m.register("used", contexts.bit_length()), m.register("turn", bits)
    now = mux(none, given, used).truncate(used.width)
    into = mux(none & (turn >= given), 0, turn).truncate(bits)
    ready = primed & choose(into, free) & (~next_valid | next_ready) & (none | ~restart)
    ready = ready.named("ready")
    accept = (valid & ready).named("accepted")
    used.drive(now)
    following = (into + 1).extend(used.width + 1)
    turn.drive(mux(accept, mux(following >= now, 0, following), into).truncate(bits))

    next_position = m.register("next_position", position_bits)
    here = mux(restart, restart_position, next_position)
    next_position.drive((here + 1).truncate(position_bits), accept)
    for c in range(contexts):
        mine = (accept & (into == c)).named(f"accepted{c}")
        running[c].drive(mine | ~free[c])
        wanted[c].drive(mux(mine, sample, wanted[c] & ~there[c]))
        position = m.register(f"position_q{c}", position_bits)
        position.drive(here, mine)
        m.output(f"accept{c}", mine)
        m.output(f"live{c}", running[c])
        m.output(f"held_token{c}", token.delay(enable=mine, name=f"token_q{c}"))
        m.output(f"position{c}", position)
    m.output("token_ready", ready)
    m.output("next_valid", next_valid)
    held = result.delay(enable=result_valid, name="next_token_q")
    m.output("next_token", mux(result_valid, result, held))
    held = whose.delay(enable=result_valid, name="next_context_q")
    m.output("next_context", mux(result_valid, whose, held))
    m.output("sampled", sample)
    m.output("turn", turn)
    m.output("accepted", accept)
    m.output("busy", ~none)
    return m
