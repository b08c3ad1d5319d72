"""onnxruntime as the judge, on tiny models."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects.errors import UserError
from intaglio.runtime.judge import reference as module
from intaglio.runtime.judge.reference import Reference, nodes_of

HEAD = 16
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def copy(model: Path, folder: Path) -> Path:
    shutil.copytree(model.parent, folder)
    return folder / model.name


@pytest.mark.parametrize("name", ["llama", "tied", "qwen", "phi", "int8", "prune"])
@pytest.mark.parametrize("float_activations", [False, True])
def test_window_equals_token_by_token(model, name: str, float_activations: bool):
    one = Reference(model(name), float_activations=float_activations)
    together = one.feed(TOKENS)
    assert together.shape == (len(TOKENS), one.vocabulary) and together.dtype == np.float32
    assert one.position == len(TOKENS)
    one.reset()
    steps = np.concatenate([one.feed([token]) for token in TOKENS])
    np.testing.assert_allclose(together, steps, atol=2e-5)
    assert one.only_last == (name == "prune")


def test_a_window_may_follow_another(model):
    one = Reference(model("llama"))
    whole = one.feed(TOKENS)
    one.reset()
    parts = np.concatenate([one.feed(TOKENS[:5]), one.feed(TOKENS[5:])])
    np.testing.assert_allclose(whole, parts, atol=2e-5)


def test_float_activations_differ_only_where_the_graph_rounds(model):
    def both(name: str) -> list[np.ndarray]:
        return [Reference(model(name), float_activations=f).feed(TOKENS) for f in (False, True)]

    rounded, exact = both("llama")
    assert 1e-3 < np.abs(rounded - exact).max() < 0.5
    rounded, exact = both("int8")
    assert np.array_equal(rounded, exact)


def test_float_activations_are_what_the_operator_means(model, tmp_path: Path):
    path = copy(model("llama"), tmp_path / "model")
    name = "/model/layers.0/mlp/down_proj/MatMul"
    _, outputs = nodes_of(path)[name]
    inputs = ["/model/layers.0/mlp/Mul/output_0", *outputs]
    _, values = Reference(path, float_activations=True, observed=inputs).observe(TOKENS)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    key = "model.layers.0.mlp.down_proj.MatMul"
    blob = tensors[f"{key}.weight_Q4"]
    codes = np.stack([blob & 15, blob >> 4], -1).reshape(len(blob), -1, 32)
    weights = (codes.astype(np.float64) - 8) * tensors[f"{key}.weight_scales"][..., None]
    expected = values[inputs[0]][0].astype(np.float64) @ weights.reshape(len(blob), -1).T
    np.testing.assert_allclose(values[inputs[1]][0], expected, atol=1e-5)


def test_weights_stay_in_their_file(model, monkeypatch: pytest.MonkeyPatch):
    graphs = []
    edited = module._edited
    monkeypatch.setattr(module, "_edited", lambda *args: graphs.append(edited(*args)) or graphs[0])
    Reference(model("llama"), float_activations=True).feed(TOKENS)
    assert len(graphs[0]) < model("llama").with_name("model.onnx.data").stat().st_size / 2


def test_generation_is_greedy(model):
    one = Reference(model("llama"))
    tokens = [token for token, _ in one.generate([1, 2, 3], 6)]
    one.reset()
    logits = one.feed([1, 2, 3, *tokens[:-1]])
    assert logits[2:].argmax(-1).tolist() == tokens


def test_head_width_comes_from_the_caller_or_the_config(model, tmp_path: Path):
    path = copy(model("tied"), tmp_path / "model")
    expected = Reference(path).feed(TOKENS)
    path.with_name("genai_config.json").unlink()
    assert np.array_equal(Reference(path, head_width=16).feed(TOKENS), expected)
    with pytest.raises(UserError, match=r"past_key_values.0.key' in axis 3 is not known") as caught:
        Reference(path)
    assert "genai_config.json" in str(caught.value)


def quantised(
    bits: int, blocks: int, points: bool, order: np.ndarray | None, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """A decoder of one table and one MatMulNBits with or without zero points; table and weights."""
    rng, columns, rows = np.random.default_rng(bits), 32 * blocks, 64
    codes = rng.integers(0, 1 << bits, (rows, blocks, 32))
    zeros = rng.integers(0, 1 << bits, (rows, blocks))
    scales = rng.uniform(0.01, 0.1, (rows, blocks)).astype(np.float32)
    table = rng.normal(size=(rows, columns)).astype(np.float32)

    def packed(values: np.ndarray) -> np.ndarray:
        each = 8 // bits
        wide = -(-values.shape[-1] // each) * each
        padded = np.zeros((*values.shape[:-1], wide), np.int64)
        padded[..., : values.shape[-1]] = values
        parts = padded.reshape(*padded.shape[:-1], -1, each) << np.arange(each) * bits
        return parts.sum(-1).astype(np.uint8)

    tensors = {"table": table, "codes": packed(codes), "scales": scales}
    names = ["x", "codes", "scales", "", ""]
    if points:
        tensors["points"], names[3] = packed(zeros), "points"
    if order is not None:
        tensors["order"], names[4] = order, "order"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node(
            "MatMulNBits",
            names,
            ["logits"],
            name="head",
            domain="com.microsoft",
            K=columns,
            N=rows,
            bits=bits,
            block_size=32,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", rows])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    offset = zeros if points else np.full_like(zeros, 1 << (bits - 1))
    return table, ((codes - offset[..., None]) * scales[..., None]).reshape(rows, -1)


@pytest.mark.parametrize(
    ("bits", "blocks", "points"),
    [(4, 2, True), (4, 3, True), (4, 1, False), (2, 4, True), (2, 4, False), (8, 2, True)],
)
def test_a_g_idx_that_reorders_nothing_is_left_out(
    bits: int, blocks: int, points: bool, tmp_path: Path
):
    """Beside it onnxruntime ignores packed zero points, or worse; numpy says what is right."""
    path = tmp_path / "model.onnx"
    order = (np.arange(32 * blocks) // 32).astype(np.int32)
    table, weights = quantised(bits, blocks, points, order, path)
    for float_activations in (False, True):
        one = Reference(path, float_activations=float_activations)
        np.testing.assert_allclose(one.feed(TOKENS), table[TOKENS] @ weights.T, atol=1e-3)
        (said,) = one.changes
        assert "without the g_idx of 'head'" in said and "zero points" in said
    quantised(bits, blocks, points, None, path)
    assert Reference(path).changes == ()


def test_a_g_idx_that_reorders_is_kept(tmp_path: Path):
    path = tmp_path / "model.onnx"
    quantised(4, 2, False, (np.arange(64) % 2).astype(np.int32), path)
    assert Reference(path).changes == ()


def with_packed_caches(source: Path, path: Path, bits: int, symbol: bool) -> Path:
    """A model whose caches hold codes of 4 or 8 bits, their width a number or a symbol."""
    proto = onnx.load(source)
    width = HEAD * bits // 8
    kind = TensorProto.UINT8 if bits == 4 else TensorProto.INT8
    for port in (*proto.graph.input, *proto.graph.output):
        if "past" in port.name or "present" in port.name:
            port.type.tensor_type.elem_type = kind
            last = port.type.tensor_type.shape.dim[3]
            last.ClearField("value")
            if symbol:
                last.dim_param = "packed_width"
            else:
                last.dim_value = width
    for node in proto.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input.extend([""] * (12 - len(node.input)))
            for letter in "kv":
                name = f"{node.name}/{letter}_scale"
                proto.graph.initializer.append(
                    numpy_helper.from_array(
                        np.array([0.05 if bits == 8 else 0.5], np.float32), name
                    )
                )
                node.input.append(name)
                node.attribute.append(helper.make_attribute(f"{letter}_quant_type", "PER_TENSOR"))
            node.attribute.append(helper.make_attribute("kv_cache_bit_width", bits))
    path.parent.mkdir(exist_ok=True)
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "tied"])
def test_a_packed_cache_whose_width_is_a_symbol(model, name: str, bits: int, tmp_path: Path):
    """The judge gets the bytes that a head takes, whoever says how wide the head is."""
    known = with_packed_caches(model(name), tmp_path / "a" / "model.onnx", bits, symbol=False)
    wanted = Reference(known).feed(TOKENS)
    path = with_packed_caches(model(name), tmp_path / "b" / "model.onnx", bits, symbol=True)
    one = Reference(path, head_width=HEAD)
    assert np.array_equal(one.feed(TOKENS), wanted)
    shutil.copy(model(name).with_name("genai_config.json"), path.parent)
    assert np.array_equal(Reference(path).feed(TOKENS), wanted)


def test_inputs_that_nothing_reads(model, tmp_path: Path):
    """Some exporters declare keys and values of layers that read another layer's cache."""
    path = copy(model("tied"), tmp_path / "model")
    wanted = Reference(path).feed(TOKENS)
    proto = onnx.load(path, load_external_data=False)
    floats, ids = TensorProto.FLOAT, TensorProto.INT64
    more = {
        "past_key_values.7.key": (floats, ["batch", 2, "past", 16]),
        "past_key_values.7.value": (floats, ["batch", 2, "past", 16]),
        "token_type_ids": (ids, ["batch", "sequence"]),
        "flag": (TensorProto.FLOAT16, []),
    }
    for name, (kind, dims) in more.items():
        proto.graph.input.append(helper.make_tensor_value_info(name, kind, dims))
    onnx.save(proto, path)
    for float_activations in (False, True):
        one = Reference(path, float_activations=float_activations)
        found = one.feed(TOKENS)
        assert found.shape == wanted.shape
        if not float_activations:
            assert np.array_equal(found, wanted)
            parts = Reference(path)
            steps = [parts.feed(TOKENS[:3]), parts.feed(TOKENS[3:])]
            np.testing.assert_allclose(np.concatenate(steps), wanted, atol=2e-5)


def test_what_onnxruntime_cannot_load_is_the_users_error(model, tmp_path: Path):
    path = copy(model("tied"), tmp_path / "model")
    path.with_name("model.onnx.data").unlink()
    for float_activations in (False, True):
        with pytest.raises(UserError, match="onnxruntime cannot load the model: ") as caught:
            Reference(path, float_activations=float_activations)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="the model cannot be read: "):
        Reference(path, float_activations=True)


def test_token_out_of_range_is_the_users_error(model):
    for token in (64, -1):
        with pytest.raises(UserError, match=f"token id {token} is out of range"):
            Reference(model("tied")).feed([1, token])


def test_what_onnxruntime_cannot_run_is_the_users_error(model):
    one = Reference(model("llama"))
    with pytest.raises(UserError, match="onnxruntime cannot run the model: "):
        one.feed([1] * 129)
