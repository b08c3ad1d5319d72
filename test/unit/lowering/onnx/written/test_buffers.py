"""Static caches: buffers for all tokens, which the new ones are written into (TensorScatter)."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from intaglio.dialects import rom
from intaglio.dialects.errors import UserErrors
from intaglio.lowering.onnx.importer import import_model
from intaglio.runtime.judge.reference import Reference

HEADS, WIDTH, LENGTH = 2, 8, 24
COUNTED = "nonpad_kv_seqlen"


def buffers(d, rank=3, heads=HEADS, mode=None, where="write_indices", counted=COUNTED, **attention):
    """Attention of "x" over two buffers, as mobius writes it; gives "y"."""
    d.opset = 24
    shape = ["batch", LENGTH, heads * WIDTH] if rank == 3 else ["batch", heads, LENGTH, WIDTH]
    for name in ("write_indices", COUNTED):
        d.inputs.append((name, TensorProto.INT64, ["batch"]))
    size = heads * WIDTH
    d.constant("none", np.array([0]))
    d.constant("last", np.array([-1]))
    d.constant("some", np.array([size]))
    d.constant("split", np.array([0, 0, heads, WIDTH]))
    d.node("Slice", ["x", "none", "some", "last"], ["part"])
    new = "part"
    if rank == 4:
        d.node("Reshape", ["part", "split"], ["apart"])
        d.node("Transpose", ["apart"], ["new"], perm=[0, 2, 1, 3])
        new = "new"
    given = {"axis": 1 if rank == 3 else 2} | ({"mode": mode} if mode else {})
    for kind in ("key", "value"):
        past, present = f"{kind}_cache.0", f"updated_{kind}_cache.0"
        d.inputs.append((past, TensorProto.FLOAT, shape))
        d.pasts.append((past, TensorProto.FLOAT, [1, *shape[1:]]))
        d.outputs.append((present, TensorProto.FLOAT, shape))
        d.node("TensorScatter", [past, new, where], [present], **given)
    inputs = ["x", "updated_key_cache.0", "updated_value_cache.0", "", "", "", counted]
    if rank == 4:
        d.constant("queries", np.array([0, 0, HEADS, WIDTH]))
        d.constant("flat", np.array([0, 0, -1]))
        d.node("Reshape", ["x", "queries"], ["x4"])
        d.node("Transpose", ["x4"], ["q"], perm=[0, 2, 1, 3])
        inputs[0] = "q"
        d.node("Attention", inputs, ["a"], is_causal=1, **attention)
        d.node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3])
        d.node("Reshape", ["b", "flat"], ["y"])
    else:
        counts = {"q_num_heads": HEADS, "kv_num_heads": heads}
        d.node("Attention", inputs, ["y"], is_causal=1, **counts, **attention)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("attention", [{}, {"softcap": 2.0, "scale": 0.5}])
def test_a_buffer_is_the_chips_own(decoder, agrees, rank, heads, attention) -> None:
    buffers(decoder, rank, heads, **attention)
    model = agrees(decoder)
    (op,) = (op for op in model.module.walk() if isinstance(op, rom.AttentionOp))
    caches = [op for op in model.module.ops if isinstance(op, rom.CacheOp)]
    assert [(c.type.heads.data, c.type.width.data) for c in caches] == [(heads, WIDTH)] * 2
    assert op.window is None
    # No more tokens than the graph's buffers hold.
    assert model.positions == LENGTH


@pytest.mark.parametrize("rank", [3, 4])
def test_the_judge_fills_the_buffers(decoder, rank) -> None:
    buffers(decoder, rank)
    decoder.floats("head", 16, 11)
    decoder.node("MatMul", ["y", "head"], ["logits"])
    path = decoder.save("logits")
    tokens = [3, 1, 4, 1, 5, 9, 2]
    whole = Reference(path).feed(tokens)
    one = Reference(path)
    parts = np.concatenate([one.feed(tokens[:2]), *(one.feed([t]) for t in tokens[2:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
    one.reset()
    np.testing.assert_allclose(one.feed(tokens[:3]), whole[:3], rtol=1e-5, atol=1e-5)


def refused(decoder) -> str:
    with pytest.raises(UserErrors) as caught:
        import_model(decoder.save("y"))
    return "\n".join(str(error) for error in caught.value.errors)


def test_a_buffer_that_forgets(decoder) -> None:
    buffers(decoder, mode="circular")
    assert "it wraps around at the end of the buffer" in refused(decoder)


def test_a_buffer_of_which_all_counts(decoder) -> None:
    buffers(decoder, counted="")
    assert "nothing says how many tokens of them count" in refused(decoder)


def test_tokens_that_are_counted_otherwise(decoder) -> None:
    """One less than what the input says."""
    decoder.constant("one", np.array([1]))
    buffers(decoder, counted="fewer")
    decoder.nodes.insert(0, helper.make_node("Sub", [COUNTED, "one"], ["fewer"]))
    assert "nonpad_kv_seqlen" in refused(decoder)


def test_tokens_that_are_written_elsewhere(decoder) -> None:
    decoder.constant("start", np.array([0]))
    buffers(decoder, where="start")
    assert "where it writes is not known to be behind the past tokens" in refused(decoder)


def test_a_buffer_without_a_length(decoder) -> None:
    buffers(decoder)
    decoder.inputs = [
        (name, dtype, [dims[0], "room", *dims[2:]] if "cache" in name else dims)
        for name, dtype, dims in decoder.inputs
    ]
    assert "the buffer 'key_cache.0' has no stated length" in refused(decoder)
