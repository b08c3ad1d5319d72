"""What tensors lose as mantissas: figures in the manifest, warnings of `compile`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.backend.compile import compile_model
from intaglio.backend.images.losses import ScaleLosses, ValueLosses
from intaglio.backend.images.write import MATRICES
from intaglio.backend.output.output import MANIFEST
from intaglio.backend.stages import Options
from intaglio.dialects.codes import fixed
from intaglio.lowering.step.loss_warning import NOTEWORTHY

Named = Callable[[str], Path]
Change = Callable[[np.ndarray], None]


def changed(path: Path, folder: Path, **changes: Change) -> Path:
    """A copy of a model with some initializers changed, by a part of their names."""
    model = onnx.load(path)
    for part, change in changes.items():
        (tensor,) = (one for one in model.graph.initializer if part in one.name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def engraved(path: Path, out: Path) -> tuple[tuple[str, ...], dict[str, Any], bytes]:
    """Warnings, the manifest's account of rounding, and the matrices of a compile."""
    found = compile_model(path, out, Options("roma-mini", emit="fabric"))
    manifest = json.loads((out / MANIFEST).read_text())
    return found.warnings, manifest["rounding"], (out / MATRICES).read_bytes()


# --- figures --------------------------------------------------------------------------------------


def test_a_scale_is_measured_by_itself() -> None:
    scales = np.array([[1.0], [0.002], [0.5]]) * 0.9
    losses = ScaleLosses("onnx::w,s", 15, None)
    losses.add(scales[:1], fixed(scales[:1], 15, 16), 0)
    assert losses.worst.share == pytest.approx(abs(round(0.9 * 2**15) / 2**15 / 0.9 - 1))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_vectors_by_element_tables_by_row_biases_as_a_whole(chunk: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(sigma=3, size=(100, 8))
    values[7] = 0

    def worst(data: np.ndarray, exponent: int, bits: int) -> Any:
        losses = ValueLosses("onnx::t", exponent, data.ndim, bits)
        for first in range(0, len(data), chunk):
            part = data[first : first + chunk]
            losses.add(part, fixed(part, exponent, bits), first)
        return losses.worst

    exponent = 14 - int(np.frexp(values.max())[1])
    rounded = np.rint(values * 2.0**exponent) / 2.0**exponent
    norms = np.linalg.norm(rounded - values, axis=1)
    rows = np.divide(norms, np.linalg.norm(values, axis=1), out=np.zeros(100), where=norms > 0)
    found = worst(values, exponent, 16)
    assert (found.tensor, found.place) == ("t", f"row {rows.argmax()}")
    assert found.share == pytest.approx(rows.max())
    assert found.parts == np.count_nonzero(rows > NOTEWORTHY)
    column = values[:, 0]
    each = np.abs(rounded[:, 0] - column) / np.where(column > 0, column, 1)
    found = worst(column, exponent, 16)
    assert (found.place, found.share) == (f"element {each.argmax()}", pytest.approx(each.max()))
    assert found.parts == np.count_nonzero(each > NOTEWORTHY)
    bias = rng.normal(size=100) * 1e-4
    off = np.rint(bias * 2**16) / 2**16 - bias
    whole = np.linalg.norm(off) / np.linalg.norm(bias)
    assert worst(bias, 16, 32).share == pytest.approx(whole)


# --- a compile ------------------------------------------------------------------------------------


def test_nothing_is_said_of_an_ordinary_model(model: Named, tmp_path: Path) -> None:
    warnings, rounding, _ = engraved(model("llama"), tmp_path / "out")
    assert not warnings and not rounding["noteworthy"]
    assert 0 < rounding["largest_relative_error"] < 1e-3


def with_dead_groups(path: Path, folder: Path, bits: int, scale: float) -> Path:
    """Blocks of codes that are all the zero point: one, a whole row, and one after a used peak."""
    model = onnx.load(path)
    tensors = {one.name: one for one in model.graph.initializer}
    name = "model.layers.1.attn.o_proj.MatMul.weight_"
    codes, scales = (
        numpy_helper.to_array(tensors[name + kind]).copy() for kind in (f"Q{bits}", "scales")
    )
    for row, group in [(5, 1), (9, 0), (9, 1), (63, 0)]:
        zero = 1 << (bits - 1)
        if f"{name}zp" in tensors:
            zero = numpy_helper.to_array(tensors[f"{name}zp"])[row, 0] >> 4 * group & 15
        codes[row, group] = sum(int(zero) << at for at in range(0, 8, bits))
        scales[row, group] = scale
    for kind, values in ((f"Q{bits}", codes), ("scales", scales)):
        tensors[name + kind].CopyFrom(numpy_helper.from_array(values, name + kind))
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(("name", "bits"), [("llama", 4), ("qwen", 4), ("int8", 8), ("ternary", 2)])
def test_groups_of_zeros_do_not_count(model: Named, tmp_path: Path, name: str, bits: int) -> None:
    """Whatever their scale, the chip is the one with scales of 0, and nothing is lost."""
    found: list[Any] = []
    for scale in (0.0, 1.0, 1e3, -1e30):
        path = with_dead_groups(model(name), tmp_path / f"{scale}", bits, scale)
        found.append(engraved(path, tmp_path / f"{scale}.out"))
    assert all(one == found[0] for one in found)
    warnings, rounding, _ = found[0]
    assert not warnings and not rounding["noteworthy"]
    assert rounding["tensors"]["model_layers_1_attn_o_proj"] < 1e-4


def test_groups_of_zeros_with_small_scales_do_not_count(model: Named, tmp_path: Path) -> None:
    """A guard value far under the others is lost, but nobody uses it."""
    path = with_dead_groups(model("llama"), tmp_path / "model", 4, 1e-9)
    warnings, rounding, _ = engraved(path, tmp_path / "out")
    assert not warnings and rounding["largest_relative_error"] < 1e-3


def test_an_int16_model_with_a_dead_group_is_as_near_as_without(
    model: Named, tmp_path: Path
) -> None:
    from intaglio.runtime.chip import load
    from intaglio.runtime.judge.check import check

    options = Options("roma-mini", ("activations=int16", "kv=int16"))
    path = with_dead_groups(model("llama"), tmp_path / "model", 4, 1e3)
    compile_model(path, tmp_path / "out", options)
    assert check(load(tmp_path / "out"), tokens=16)["max_error_of_range"] < 2e-4


def times(at: tuple[int, ...], factor: float) -> Change:
    def change(values: np.ndarray) -> None:
        values[at] *= factor

    return change


LOST = [
    ("layers.0.mlp.up_proj.MatMul.weight_scales", (7, 1), "row 7, group 1", 1e-7),
    ("layers.1.attn.o_proj.MatMul.weight_scales", (63, 0), "row 63, group 0", 3e-4),
    ("lm_head.MatMul.weight_scales", (255, 1), "row 255, group 1", 2e-4),
    ("layers.1.input_layernorm.weight", (63,), "element 63", 1e-7),
    ("layers.0.post_attention_layernorm.weight", (0,), "element 0", 3e-4),
    ("embed_tokens.weight", (200,), "row 200", 1e-6),
    ("embed_tokens.weight", (0,), "row 0", 4e-4),
]


@pytest.mark.parametrize(("part", "at", "place", "factor"), LOST)
def test_what_is_lost_is_said(
    model: Named, tmp_path: Path, part: str, at: tuple[int, ...], place: str, factor: float
) -> None:
    """A used scale, an element of a norm, or a row of the embedding far under the others."""
    before = onnx.load(model("llama"))
    (tensor,) = (one for one in before.graph.initializer if part in one.name)
    values = numpy_helper.to_array(tensor).astype(np.float64).copy()
    values[at] = (numpy_helper.to_array(tensor)[at] * np.float32(factor)).astype(np.float64)
    if "norm" in part:
        values *= 8.0
    step = 2.0 ** -(15 - int(np.frexp(np.abs(values).max())[1]))
    off = np.rint(values[at] / step) * step - values[at]
    share = float(np.linalg.norm(off) / np.linalg.norm(values[at]))
    assert share > NOTEWORTHY

    path = changed(model("llama"), tmp_path / "model", **{part: times(at, factor)})
    warnings, rounding, _ = engraved(path, tmp_path / "out")
    (entry,) = rounding["noteworthy"].values()
    name = tensor.name.replace("_scales", "_Q4")
    assert (entry["tensor"], entry["place"], entry["parts"]) == (name, place, 1)
    assert entry["share"] == pytest.approx(share) == rounding["largest_relative_error"]
    (warning,) = warnings
    said = f"{100 * share:.2g}" if share < 0.995 else "100"
    assert warning.startswith(f"tensor '{name}', {place}, loses {said} % ")


def test_many_are_counted(model: Named, tmp_path: Path) -> None:
    """One scale far above all others of its matrix, in four matrices: one warning."""
    parts = [f"layers.{i}.{kind}.MatMul.weight_scales" for i in (0, 1) for kind in KINDS]
    path = changed(
        model("llama"), tmp_path / "model", **{part: times((3, 0), 1e6) for part in parts}
    )
    warnings, rounding, _ = engraved(path, tmp_path / "out")
    assert [entry["parts"] for entry in rounding["noteworthy"].values()] == [127, 191, 127, 191]
    (warning,) = warnings
    assert warning.count("loses 100 %") == 3 and "1 more tensor " in warning


KINDS = ("attn.o_proj", "mlp.up_proj")
