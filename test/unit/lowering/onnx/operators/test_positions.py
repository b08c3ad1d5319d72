"""Tables that are addressed by the position: learned ones, quantised ones, computed ones."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from intaglio.dialects import rom
from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.importer import import_model


def positions(decoder):
    """Position ids as an input of the graph."""
    decoder.inputs.append(("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    return "position_ids"


def counted(decoder):
    """Position ids of the attention mask, as torch's OPT has them: a running sum less 1, plus 2."""
    decoder.lengths()
    decoder.past(0, 2, 8)
    decoder.node("CumSum", ["attention_mask", decoder.constant("axis", np.array(1))], ["run"])
    decoder.node("Mul", ["run", "attention_mask"], ["kept"])
    decoder.node("Sub", ["kept", "scalar_one"], ["less_one"])
    decoder.node("Shape", ["past_key_values.0.key"], ["past_shape"], start=2, end=3)
    decoder.constant("end", np.array([1 << 40]))
    decoder.node("Slice", ["less_one", "past_shape", "end", "one"], ["new"])
    decoder.node("Add", ["new", decoder.constant("two", np.array(2))], ["rows"])
    return "rows"


def attended(decoder):
    """The caches are read, so that past and present belong to something."""
    decoder.ms(
        "GroupQueryAttention",
        [
            *["x", "x", "x", "past_key_values.0.key", "past_key_values.0.value"],
            *["seqlens_k", "total"],
        ],
        ["attended", "present.0.key", "present.0.value"],
        num_heads=2,
        kv_num_heads=2,
    )
    return "attended"


def tables(model):
    """The shapes of tables that positions choose a row of."""
    return [
        rom.resolved_type(op, op.table, rom.ROMTensorType).dims
        for op in model.module.walk()
        if isinstance(op, rom.EmbedPositionOp)
    ]


def test_rows_from_0_on(decoder, agrees):
    """GPT-2."""
    rows = positions(decoder)
    decoder.node("Gather", [decoder.floats("wpe", 24, 16), rows], ["row"])
    decoder.node("Add", ["x", "row"], ["y"])
    model = agrees(decoder)
    assert (tables(model), model.positions) == ([(24, 16)], 24)


def test_rows_from_2_on(decoder, agrees):
    """OPT: positions follow from the mask; the first two rows are nobody's."""
    rows = counted(decoder)
    decoder.node("Gather", [decoder.floats("positions", 26, 16), rows], ["row"])
    decoder.node("Add", [attended(decoder), "row"], ["y"])
    model = agrees(decoder)
    assert (tables(model), model.positions) == ([(24, 16)], 24)


def test_only_the_rows_of_the_context_are_engraved(decoder):
    rows = positions(decoder)
    decoder.node("Gather", [decoder.floats("wpe", 24, 16), rows], ["row"])
    decoder.node("Add", ["x", "row"], ["y"])
    assert tables(import_model(decoder.save(), context=10)) == [(10, 16)]
    with pytest.raises(UserError, match="from 1 to 24, its rows by position"):
        import_model(decoder.save(), context=25)


def test_half_precision_and_a_cast(decoder, agrees):
    table = decoder.constant("wpe", decoder.rng.normal(size=(24, 16)).astype(np.float16))
    decoder.node("Gather", [table, positions(decoder)], ["half"])
    decoder.node("Cast", ["half"], ["row"], to=TensorProto.FLOAT)
    decoder.node("Add", ["row", "x"], ["y"])
    assert tables(agrees(decoder)) == [(24, 16)]


def test_skip_layer_norm_adds_it(decoder, agrees):
    """onnxruntime's optimiser fuses the sum with the first norm."""
    decoder.node("Gather", [decoder.floats("wpe", 24, 16), positions(decoder)], ["row"])
    weights = [decoder.floats("gamma", 16), decoder.floats("beta", 16)]
    decoder.ms("SkipLayerNormalization", ["x", "row", *weights], ["y"], epsilon=1e-5)
    assert tables(agrees(decoder)) == [(24, 16)]


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_by_block(decoder, agrees, bits):
    width = 16 * bits // 8
    data = decoder.rng.integers(0, 256, (24, width)).astype(np.uint8)
    scales = np.full((24, 1), 0.05, np.float32)
    inputs = [decoder.constant("wpe_Q", data), positions(decoder)]
    decoder.ms(
        "GatherBlockQuantized",
        [*inputs, decoder.constant("wpe_scales", scales)],
        ["row"],
        bits=bits,
        block_size=16,
        gather_axis=0,
        quantize_axis=1,
    )
    decoder.node("Add", ["x", "row"], ["y"])
    model = agrees(decoder)
    assert tables(model) == [(24, 16)]


@pytest.mark.parametrize("before", [False, True])
def test_dequantised(decoder, agrees, before):
    """Before the rows are chosen, or after."""
    codes = decoder.rng.integers(-99, 99, (24, 16)).astype(np.int8)
    decoder.constant("codes", codes)
    scale = decoder.constant("scale", np.array(0.02, np.float32))
    rows = positions(decoder)
    if before:
        decoder.node("DequantizeLinear", ["codes", scale], ["wide"])
        decoder.node("Gather", ["wide", rows], ["row"])
    else:
        decoder.node("Gather", ["codes", rows], ["narrow"])
        decoder.node("DequantizeLinear", ["narrow", scale], ["row"])
    decoder.node("Add", ["x", "row"], ["y"])
    assert tables(agrees(decoder)) == [(24, 16)]


def test_sines_of_the_position(decoder, agrees):
    """Not learned: computed of the position alone."""
    decoder.node("Cast", [positions(decoder)], ["place"], to=TensorProto.FLOAT)
    decoder.node("Unsqueeze", ["place", decoder.constant("last", np.array([-1]))], ["tall"])
    decoder.node("Mul", ["tall", decoder.floats("frequencies", 8)], ["angles"])
    for op in ("Sin", "Cos"):
        decoder.node(op, ["angles"], [op.lower()])
    decoder.node("Concat", ["sin", "cos"], ["row"], axis=-1)
    decoder.node("Add", ["x", "row"], ["y"])
    assert tables(agrees(decoder, tolerance=1e-4)) == [(1024, 16)]


def test_a_table_that_both_choose_from(decoder, agrees):
    """The same tensor by token and by position is engraved twice: of one, rows are left out."""
    decoder.node("Gather", ["table", positions(decoder)], ["row"])
    decoder.node("Add", ["x", "row"], ["y"])
    model = agrees(decoder)
    assert tables(model) == [(11, 16)]
    assert len([op for op in model.module.ops if isinstance(op, rom.ParameterOp)]) == 2


def test_what_is_no_row_of_a_position(decoder):
    """A table that lengths choose from: of the number of tokens, or from its end."""
    rows = positions(decoder)
    decoder.node("Neg", [rows], ["back"])
    decoder.node("Gather", [decoder.floats("wpe", 24, 16), "back"], ["row"])
    decoder.node("Add", ["x", "row"], ["y"])
    with pytest.raises(UserErrors, match=r"may be negative"):
        import_model(decoder.save())
