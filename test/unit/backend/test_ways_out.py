"""What an error says would fit does: every hint, followed, compiles, and more does not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from intaglio.backend.compile import compile_model
from intaglio.backend.stages import Options
from intaglio.backend.ways_out import tried
from intaglio.dialects.errors import DoesNotFit, UserError, Way

Model = Callable[[str], Path]


def followed(options: Options, hint: str) -> Options:
    """The options of a compile that does what a hint says."""
    words = iter(shlex.split(hint))
    for word in words:
        if word == "no":
            assert next(words) == "--adapter-slots"
            options = replace(options, adapter_rank=0, adapter_modules=(), resident_adapters=1)
            continue
        value = next(words)
        match word:
            case "--context":
                options = replace(options, context=int(value))
            case "--set":
                key = value.partition("=")[0]
                kept = tuple(s for s in options.settings if s.partition("=")[0] != key)
                options = replace(options, settings=(*kept, value))
            case "--resident-adapters":
                options = replace(options, resident_adapters=int(value))
            case "--adapter-slots":
                rank, _, modules = value.partition(":")
                roles = tuple(modules.split(",")) if modules else ()
                options = replace(options, adapter_rank=int(rank), adapter_modules=roles)
            case _:
                raise AssertionError(word)
    return options


def hints(error: DoesNotFit, modules: str = "") -> list[str]:
    """All that an error names with a number, as options; the list keeps the modules of slots."""
    named = re.findall(r"(?:^|: |; or )((?:no )?--[^;]*?) would fit", error.hint or "")
    for line in str(error).splitlines():
        if "what fits:" not in line:
            continue
        for rank, tokens, on_die in re.findall(
            r"(rank \d+|no slots) with ([\d,]+) tokens( on the die)?", line
        ):
            slots = (
                "no --adapter-slots"
                if rank == "no slots"
                else f"--adapter-slots {rank[5:]}{modules}"
            )
            count = tokens.replace(",", "")
            of = f"--set external.kv_on_die_tokens={count}" if on_die else f"--context {count}"
            named.append(f"{slots} {of}")
    return named


CASES = {
    # A context that the SRAM would hold and the vector memory would not.
    "vectors": ("llama", Options("roma-mini", ("vector.sram_bytes=2000",), 128), "--context"),
    "sram, then vectors": (
        "llama",
        Options("roma-mini", ("vector.sram_bytes=1800", "h_unit.sram_bytes=2400"), 128),
        "--context",
    ),
    # Scales of the caches are in the vector memory too.
    "scales": ("llama", Options("roma-mini", ("vector.sram_bytes=2900",), 128), "kv=fp8"),
    "formats": (
        "llama",
        Options("roma-mini", ("h_unit.sram_bytes=2048", "kv=int16"), 128),
        "kv=int8",
    ),
    "formats with a context": (
        "llama",
        Options("roma-mini", ("h_unit.sram_bytes=1000", "kv=int16"), 128),
        "--set kv=fp8 --context",
    ),
    "residents": (
        "llama",
        Options("roma-mini", ("h_unit.sram_bytes=5000",), 64, None, 4, (), 7),
        "--resident-adapters",
    ),
    "modules": (
        "llama",
        Options("roma-mini", ("h_unit.sram_bytes=3200",), 96, None, 32, ("q_proj", "v_proj")),
        ":q_proj,v_proj",
    ),
    "tokens on the die": (
        "ternary",
        Options("bitrom-mini", ("h_unit.sram_bytes=1800", "external.kv_on_die_tokens=64"), 64),
        "kv_on_die_tokens",
    ),
    "slots beside tokens on the die": (
        "ternary",
        Options(
            "bitrom-mini",
            ("h_unit.sram_bytes=2048", "external.kv_on_die_tokens=64"),
            64,
            None,
            4,
        ),
        "what fits",
    ),
    # 16 bytes a vector would fit; every vector begins in a word of 32.
    "words": (
        "llama",
        Options(
            "roma-mini",
            ("h_unit.sram_bytes=2560", "h_unit.attention_lanes=32", "h_unit.kv_port_bytes=16"),
            128,
        ),
        "--context",
    ),
    "rom": ("llama", Options("roma-mini", ("l_unit.rom_bits=4096",), 32), "l_unit.rom_bits="),
    "six bits": ("qwen", Options("hc1-mini", ("vector.sram_bytes=3200",), 128), "--context"),
    "time": (
        "ternary",
        Options("bitrom-mini", ("external.retention_us=40",), 128),
        "retention_us=",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_hint_followed_compiles(model: Model, tmp_path: Path, name: str) -> None:
    file, options, expected = CASES[name]
    with pytest.raises(DoesNotFit) as caught:
        compile_model(model(file), tmp_path / "out", options)
    assert expected in str(caught.value)
    roles = ",".join(options.adapter_modules)
    found = hints(caught.value, f":{roles}" if roles else "")
    assert found, str(caught.value)
    for hint in found:
        compile_model(model(file), tmp_path / "out", followed(options, hint))
    alone = [int(n) for n in re.findall(r"(?:: |or )--context (\d+) would", str(caught.value))]
    for tokens in alone:
        with pytest.raises(DoesNotFit):
            compile_model(model(file), tmp_path / "out", replace(options, context=tokens + 1))


def test_where_nothing_helps_nothing_is_said(model: Model, tmp_path: Path) -> None:
    options = Options("roma-mini", ("h_unit.sram_bytes=64", "vector.sram_bytes=64"), 128)
    with pytest.raises(DoesNotFit) as caught:
        compile_model(model("llama"), tmp_path / "out", options)
    assert not hints(caught.value) and "a larger target" in str(caught.value)


def test_a_context_is_shortened_until_it_fits() -> None:
    """Each resource names what it holds; the last one decides."""
    holds = {"a": 90, "b": 70, "c": 50}
    asked: list[int | None] = []

    def attempt(options: Options) -> None:
        asked.append(options.context)
        assert options.context is not None
        for of, tokens in holds.items():
            if options.context > tokens:
                raise DoesNotFit("too much", of=of, ways=[Way(context=tokens)])

    first = DoesNotFit("too much", of="a", ways=[Way(context=90)], others=["a larger target"])
    told = tried(first, Options("t", context=100), attempt)
    assert told.hint == "--context 50 would fit; or a larger target"
    assert asked == [90, 70, 50]


def test_what_fails_for_another_reason_is_not_said() -> None:
    def attempt(options: Options) -> None:
        raise UserError("the hardware takes a power of two")

    ways = [Way(context=9), Way(rank=2), Way(settings=("kv=fp8",)), Way(residents=1)]
    told = tried(DoesNotFit("too much", ways=ways), Options("t", context=10), attempt)
    assert told.hint is None and str(told) == "too much"
