"""Fraction bits by magnitudes, on small modules of the float stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp

from intaglio.backend.target.target import load_target
from intaglio.dialects import rom
from intaglio.dialects.machine import Machine
from intaglio.lowering.step.fractions import Stream, fractions, stream_warnings

FromText = Callable[[str], ModuleOp]


def machine(*options: str) -> Machine:
    return load_target("roma-mini").with_options(options).machine()


def decoder(
    rms: float = 0.5,
    peak: float = 1.0,
    *,
    factor: float = 1.0,
    gamma: tuple[float, float] = (1.0, 2.0),
    weights: float | None = 0.05,
    bias: float = 0.0,
    eps: float = 1e-5,
    angles: float = 1.0,
) -> str:
    """Embedding (times a factor), norm, a product with a bias that turns and comes back, a head."""
    t = "tensor<64xf32>"

    def real(name: str, value: float) -> str:
        return f"{name} = {value:.17e} : f64"

    def declare(name: str, type_: str, peak: float, rms: float | None = None) -> str:
        size = "" if rms is None else f", {real('rms', rms)}"
        given = f'key = "onnx::{name}", {real("peak", peak)}{size}'
        return f"rom.parameter @{name} : !rom.tensor<{type_}> {{{given}}}"

    def compute(name: str, operator: str, attributes: str = "", kind: str = f"{t} -> {t}") -> str:
        return f'%{name} = rom.{operator} {{{attributes}onnx = [["{name}"]]}} : {kind}'

    matrix = "[64, 64], int4, group 32, zeros"
    turned = "heads = 4 : i64, rotary_dim = 16 : i64, "
    lines = [
        declare("emb", "[256, 64], float32", peak, rms),
        declare("g", "[64], float32", gamma[1], gamma[0]),
        *([declare("b", "[64], float32", bias, bias)] if bias else []),
        declare("w", matrix, 0.01, weights),
        declare("h", matrix, 0.01, weights),
        declare("cos", "[128, 8], float32", angles),
        declare("sin", "[128, 8], float32", 1.0),
        "rom.step @decode context 128 {",
        "^bb0(%token: i32, %position: index):",
        compute("e", "embed %token of @emb", kind=t),
        compute("x", "scale %e", f"{real('factor', factor)}, "),
        compute("n", "rms_norm %x by @g", f"{real('eps', eps)}, "),
        compute("p", f"linear %n by @w{' bias @b' if bias else ''}"),
        compute("r", "rotary %p at %position by @cos, @sin", turned),
        compute("q", "linear %r by @h"),
        compute("y", "add %x, %q", kind=f"{t}, {t} -> {t}"),
        compute("l", "linear %y by @h"),
        f'%next = rom.sample %l {{onnx = [["t"]]}} : {t}',
        f"rom.emit %l, %next : {t}",
        "}",
    ]
    return "\n".join(lines)


def chosen(module: ModuleOp, *options: str) -> dict[str, int]:
    """Fraction bits by the name of the value's node."""
    of = fractions(module, machine(*options)).of
    return {value.name_hint or "": bits for value, bits in of.items()}


def test_usual_magnitudes_keep_the_usual_fraction(from_text: FromText) -> None:
    assert set(chosen(from_text(decoder())).values()) == {16}


@pytest.mark.parametrize(
    ("rms", "factor", "embedded", "stream"),
    [
        (0.0626, 1.0, 16, 16),
        (0.0624, 1.0, 17, 17),
        (0.02, 1.0, 18, 18),
        (0.02, 8.0, 18, 16),
        (2e-3, 1.0, 21, 21),
        (2e-3, 0.5, 21, 22),
        (1e-9, 1.0, 30, 30),
    ],
)
def test_twelve_bits_below_the_embedding(
    from_text: FromText, rms: float, factor: float, embedded: int, stream: int
) -> None:
    got = chosen(from_text(decoder(rms, 4 * rms, factor=factor, weights=None)))
    assert (got["e"], got["x"], got["y"]) == (embedded, stream, stream)
    assert got["q"] == stream, "what is added has the stream's format"


def test_an_outlier_takes_bits_down_to_eight(from_text: FromText) -> None:
    """12 below 2**-10 are 22; 30 - log2(largest) holds the outlier, but 18 bits stay."""
    for peak, bits in ((0.1, 22), (2.0**8, 22), (2.0**9, 21), (2.0**12, 18), (2.0**20, 18)):
        got = chosen(from_text(decoder(2.0**-10, peak, weights=None)))
        assert got["y"] == bits, peak


def test_branches_need_range_in_the_stream(from_text: FromText) -> None:
    """Products that are large beside the embedding leave it less, but eight bits."""
    free = chosen(from_text(decoder(1e-4, 4e-4, weights=None)))["y"]
    assert free == 12 + 14
    assert free > chosen(from_text(decoder(1e-4, 4e-4, weights=1.0)))["y"] >= 8 + 14


@pytest.mark.parametrize(("gamma", "bits"), [(1.0, 16), (0.05, 17), (1e-3, 22), (1e-6, 30)])
def test_small_norms(from_text: FromText, gamma: float, bits: int) -> None:
    got = chosen(from_text(decoder(gamma=(gamma, 2 * gamma), weights=None)))
    assert got["n"] == bits and got["y"] == 16


def test_norms_whose_epsilon_rules(from_text: FromText) -> None:
    """rms 1e-4 and epsilon 1e-2: the norm divides by 0.1, its result is 1e-3."""
    got = chosen(from_text(decoder(1e-4, 4e-4, eps=1e-2, weights=None)))
    assert got["n"] == 12 + 10


def test_large_norms_and_biases_get_range(from_text: FromText) -> None:
    got = chosen(from_text(decoder(gamma=(1.0, 1e5), bias=3e6, weights=None)))
    assert got["n"] == 30 - math.ceil(math.log2(1e5 * 8))
    assert got["p"] == got["r"] == 30 - 22


def test_products_of_small_values(from_text: FromText) -> None:
    """Eight bits below 1e-4, where 16 leave less; not where they are enough."""
    small = chosen(from_text(decoder(gamma=(1e-4, 2e-4), weights=0.125)))
    assert small["p"] == small["r"] == 8 + 14
    assert small["q"] == small["y"] == 16, "the embedding alone counts"
    assert chosen(from_text(decoder(gamma=(0.01, 0.02), weights=0.125)))["p"] == 16


def test_a_setting_holds_for_all(from_text: FromText) -> None:
    module = from_text(decoder(1e-4, 4e-4, gamma=(1e-3, 1e-3)))
    assert set(chosen(module, "fraction_bits=12").values()) == {12}
    assert set(chosen(module, "fraction_bits=16").values()) == {16}


@pytest.mark.parametrize(
    ("angles", "bits"), [(0.5, 14), (1.0, 14), (1.99, 14), (2.0, 13), (4.5, 12), (1000.0, 5)]
)
def test_rotary_tables(from_text: FromText, angles: float, bits: int) -> None:
    assert fractions(from_text(decoder(angles=angles)), machine()).rotary == bits


@pytest.mark.parametrize(("activations", "folded"), [("int8", set()), ("half8", {12})])
def test_layers_share_what_they_carry(
    integers: Any, decoder: Any, activations: str, folded: set[int]
) -> None:
    """Outlined layers: the fraction goes in, through every instance, and out. A folded norm's
    weights have the root of the vector's length in them, so that its products have fewer bits."""
    module = integers(decoder, machine("fraction_bits=14", f"activations={activations}"))

    def types() -> Iterator[rom.FixedType]:
        for op in module.walk():
            yield from (v.type for v in op.results if isinstance(v.type, rom.FixedType))

    assert {one.fraction.data for one in types()} == {14} | folded


def test_warnings() -> None:
    fine = Stream("onnx::e", 0.02, 0.1, 18)
    assert stream_warnings([fine]) == []
    (small,) = stream_warnings([Stream("onnx::e", 8e-9, 3e-8, 30)])
    assert small.startswith("tensor 'e' loses 3.4 % as it enters the residual stream")
    assert "8.6 steps of 30 fraction bits" in small and "--set" not in small
    (large,) = stream_warnings([Stream("onnx::e", 0.001, 1e6, 18)])
    assert large.startswith("tensor 'e' has elements up to 1e+06")
    assert "holds less than 8,192" in large and large.endswith("--set fraction_bits=11 holds them")


@pytest.mark.parametrize(
    ("stream", "end"),
    [
        ((1e-4, 4e-4, 14), "model, or compile with --set fraction_bits=19"),
        ((1e-4, 4e-4, 16), "model, or compile with --set fraction_bits=19"),
        ((1e-5, 4e-5, 16), "model, or compile with --set fraction_bits=22"),
        # None left, too few left, and enough of them but for one large element.
        ((8e-9, 3e-8, 30), "scale the embedding up in the model: no number of fraction bits"),
        ((1e-12, 4e-12, 30), "scale the embedding up in the model: no number of fraction bits"),
        ((1e-9, 4e-9, 28), "scale the embedding up in the model: no number of fraction bits"),
        ((1e-5, 1e3, 16), "scale the embedding up in the model: no number of fraction bits"),
    ],
)
def test_more_fraction_bits_are_advised_where_they_help(
    stream: tuple[float, float, int], end: str
) -> None:
    (said,) = stream_warnings([Stream("onnx::e", *stream)])
    assert end in said
    assert ("--set" in said) == ("--set" in end)
    if "fraction_bits=" in end:
        bits = int(said.rsplit("=", 1)[1])
        assert bits > stream[2] and stream_warnings([Stream("onnx::e", *stream[:2], bits)]) == []
        assert stream_warnings([Stream("onnx::e", *stream[:2], bits - 1)])


@pytest.mark.parametrize(
    ("largest", "end"),
    [
        (1e6, "--set fraction_bits=11 holds them"),
        (2.0**20, "--set fraction_bits=10 holds them"),
        (2.0**23, "scale the embedding down in the model: no number of fraction bits holds them"),
    ],
)
def test_fewer_fraction_bits_are_advised_where_they_help(largest: float, end: str) -> None:
    (said,) = stream_warnings([Stream("onnx::e", 1.0, largest, 18)])
    assert said.endswith(end)


def test_an_embedding_that_is_gone_is_said_to_be() -> None:
    (said,) = stream_warnings([Stream("onnx::e", 1e-12, 4e-12, 30)])
    assert "loses 100 %" in said and "; 'e': as good as gone; scale the embedding up" in said
    assert "gone" not in stream_warnings([Stream("onnx::e", 8e-9, 3e-8, 30)])[0]
