"""The graph that judges adapters, and graphs whose adapters are inputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.adapters import without_lifted
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.weights.adapter_graph import GraphSite, input_names, write_adapter_graph

K, N = 16, 24


def save(folder: Path, nodes: list[Any], tensors: dict[str, np.ndarray], **options: Any) -> Path:
    """A graph from x [1, s, K] to y, in the element type `dtype`."""
    dtype = options.pop("dtype", TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("x", dtype, [1, "s", K]), *options.pop("inputs", [])]
    outputs = [
        helper.make_tensor_value_info(name, dtype, [1, "s", "n"])
        for name in options.pop("outputs", ["y"])
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(t, n) for n, t in tensors.items()]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def run(path: Path, x: np.ndarray, sites: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """The graph with adapters at some sites; A [r, K] and B [N, r]."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {"x": x}
    for site, (a, b) in sites.items():
        names = input_names(site)
        feeds |= dict(zip(names, (a.T.copy(), b.T.copy()), strict=True))
    return session.run(None, feeds)[0]


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 5, K)).astype(np.float32)


def adapter(rows: int, rank: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(rank, K)).astype(np.float32),
        random.normal(size=(rows, rank)).astype(np.float32),
    )


def weights(*dims: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=dims).astype(np.float32)


FORMS = {
    "matmul": (
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")],
        {"w": weights(K, N)},
        ["n"],
    ),
    "bias": (
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
            helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
        ],
        {"w": weights(K, N), "b": weights(N)},
        ["n", "bias"],
    ),
    "without names": (
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("MatMul", ["i", "w"], ["y"]),
        ],
        {"w": weights(K, N)},
        ["MatMul_1"],
    ),
    "levels": (
        # BitNet's rounding, with casts that belong to nothing on the chip.
        [
            helper.make_node("Mul", ["scale", "x"], ["u"], name="u"),
            helper.make_node("Round", ["u"], ["r"], name="r"),
            helper.make_node("Cast", ["r"], ["i"], name="i", to=TensorProto.INT8),
            helper.make_node("Cast", ["i"], ["f"], name="f", to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["f", "w"], ["m"], name="n"),
            helper.make_node("Div", ["m", "scale"], ["y"], name="d"),
        ],
        {"w": weights(K, N), "scale": np.array(20, np.float32)},
        ["u", "r", "n", "d"],
    ),
    "dynamic": (
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="d"),
            helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="n"),
            helper.make_node("Cast", ["i"], ["f"], name="c", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "s"], ["y"], name="m"),
        ],
        {"w": np.arange(K * N, dtype=np.int8).reshape(K, N)},
        # The cast is a node of its own to nobody.
        ["d", "n", "m"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_branch_beside_a_product(tmp_path: Path, x: np.ndarray, form: str):
    nodes, tensors, names = FORMS[form]
    model = save(tmp_path, nodes, tensors)
    site = GraphSite("layers.0.q_proj", 0, N, K, N, names)
    path = write_adapter_graph(model, [site], tmp_path / "adapters.onnx")
    base = run(model, x, {})
    np.testing.assert_array_equal(run(path, x, {}), base)
    a, b = adapter(N)
    expected = base + x @ a.T @ b.T
    np.testing.assert_allclose(run(path, x, {site.name: (a, b)}), expected, rtol=1e-4, atol=1e-4)
    again = write_adapter_graph(model, [site], tmp_path / "again.onnx")
    assert again.read_bytes() == path.read_bytes()
    onnx.checker.check_model(str(path))


def test_parts_of_a_packed_product(tmp_path: Path, x: np.ndarray):
    model = save(
        tmp_path,
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
            helper.make_node("Relu", ["m"], ["y"], name="r"),
        ],
        {"w": weights(K, N)},
    )
    sites = [
        GraphSite("layers.0.q_proj", 0, 12, K, N, ["n"]),
        GraphSite("layers.0.v_proj", 18, 6, K, N, ["n"]),
    ]
    path = write_adapter_graph(model, sites, tmp_path / "adapters.onnx")
    base = x @ weights(K, N)
    np.testing.assert_allclose(run(path, x, {}), np.maximum(base, 0), rtol=1e-5, atol=1e-5)
    (qa, qb), (va, vb) = adapter(12), adapter(6, rank=2, seed=2)
    base[..., :12] += x @ qa.T @ qb.T
    base[..., 18:] += x @ va.T @ vb.T
    result = run(path, x, {"layers.0.q_proj": (qa, qb), "layers.0.v_proj": (va, vb)})
    np.testing.assert_allclose(result, np.maximum(base, 0), rtol=1e-4, atol=1e-4)


def test_parts_that_have_scales_of_their_own(tmp_path: Path, x: np.ndarray):
    """The matrix was cut into its parts (scales.py): a site is the whole of one."""
    model = save(
        tmp_path,
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
            helper.make_node("Split", ["m", "sizes"], ["p", "q"], name="s", axis=-1),
            helper.make_node("Mul", ["p", "two"], ["u"], name="scale_p"),
            helper.make_node("Mul", ["q", "three"], ["v"], name="scale_q"),
            helper.make_node("Concat", ["v", "u"], ["y"], name="c", axis=-1),
        ],
        {
            "w": weights(K, N),
            "sizes": np.array([10, 14], np.int64),
            "two": np.array(2, np.float32),
            "three": np.array(3, np.float32),
        },
    )
    sites = [
        GraphSite("layers.0.q_proj", 0, 10, K, 10, ["n", "s", "scale_p"]),
        GraphSite("layers.0.v_proj", 0, 14, K, 14, ["n", "s", "scale_q"]),
    ]
    path = write_adapter_graph(model, sites, tmp_path / "adapters.onnx")
    base = run(model, x, {})
    np.testing.assert_array_equal(run(path, x, {}), base)
    (qa, qb), (va, vb) = adapter(10), adapter(14, rank=2, seed=2)
    base[..., :14] += x @ va.T @ vb.T
    base[..., 14:] += x @ qa.T @ qb.T
    result = run(path, x, {"layers.0.q_proj": (qa, qb), "layers.0.v_proj": (va, vb)})
    np.testing.assert_allclose(result, base, rtol=1e-4, atol=1e-4)


def test_half_precision(tmp_path: Path, x: np.ndarray):
    model = save(
        tmp_path,
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="n")],
        {"w": weights(K, N).astype(np.float16)},
        dtype=TensorProto.FLOAT16,
    )
    site = GraphSite("layers.0.q_proj", 6, 6, K, N, ["n"])
    path = write_adapter_graph(model, [site], tmp_path / "adapters.onnx")
    half = x.astype(np.float16)
    a, b = adapter(6)
    base = run(model, half, {}).astype(np.float32)
    base[..., 6:12] += half.astype(np.float32) @ a.T @ b.T
    result = run(path, half, {site.name: (a, b)})
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, base, rtol=2e-2, atol=2e-2)


def test_a_site_without_its_product(tmp_path: Path):
    nodes, tensors, _ = FORMS["matmul"]
    model = save(tmp_path, nodes, tensors)
    with pytest.raises(UserError, match=r"the site layers\.0\.q_proj has no product"):
        write_adapter_graph(
            model, [GraphSite("layers.0.q_proj", 0, N, K, N, ["other"])], tmp_path / "a.onnx"
        )


# --- adapters that are inputs -------------------------------------------------------------------


def lifted(folder: Path, change: Callable[[list[Any]], Any] = lambda nodes: None) -> Path:
    """A branch as Olive lifts it: inputs with empty defaults, each listed twice."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["ax"], name="a"),
        helper.make_node("MatMul", ["ax", "B"], ["bax"], name="b"),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
        helper.make_node("Add", ["m", "bax"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    change(nodes)
    tensors = {
        "w": weights(K, N),
        "A": np.zeros((K, 0), np.float32),
        "B": np.zeros((0, N), np.float32),
    }
    ports = [
        helper.make_tensor_value_info("A", TensorProto.FLOAT, [K, "lora_r"]),
        helper.make_tensor_value_info("B", TensorProto.FLOAT, ["lora_r", N]),
    ]
    return save(folder, nodes, tensors, inputs=[*ports, *ports])


def test_lifted_branches_are_taken_out(tmp_path: Path):
    graph, names = without_lifted(load(lifted(tmp_path)))
    assert names == ("A", "B")
    assert [node.name for node in graph.nodes] == ["n", "relu"]
    assert graph.nodes[1].inputs == ("m",)
    assert set(graph.inputs) == {"x"} and set(graph.initializers) == {"w"}
    assert [node.name for node in graph.consumers["m"]] == ["relu"]
    assert "sum" not in graph.producers


def test_lifted_branches_with_a_scale(tmp_path: Path):
    def scaled(nodes: list[Any]) -> None:
        nodes.insert(2, helper.make_node("Mul", ["bax", "w"], ["scaled"], name="scale"))
        nodes[4].input[1] = "scaled"

    graph, names = without_lifted(load(lifted(tmp_path, scaled)))
    assert names == ("A", "B") and [node.name for node in graph.nodes] == ["n", "relu"]


def test_lifted_branches_that_were_quantised_before(tmp_path: Path):
    """Olive's int4 form: codes and scales are inputs, and the symbolic rank is on a wrong axis."""
    nodes = [
        helper.make_node(
            "MatMulNBits",
            [source, f"{half}_Q4", f"{half}_scales"],
            [result],
            name=half,
            domain="com.microsoft",
            K=k,
            N=n,
            bits=4,
            block_size=16,
        )
        for half, source, result, k, n in (("A", "x", "ax", K, 8), ("B", "ax", "bax", 8, N))
    ]
    nodes += [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="n"),
        helper.make_node("Add", ["m", "bax"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["y"], name="relu"),
    ]
    tensors = {"w": weights(K, N)}
    ports: list[Any] = []
    for half, rows in (("A", 8), ("B", N)):
        tensors[f"{half}_Q4"] = np.zeros((rows, 0, 8), np.uint8)
        tensors[f"{half}_scales"] = np.zeros((0,), np.float32)
        for end, kind in (("Q4", TensorProto.UINT8), ("scales", TensorProto.FLOAT)):
            dims = [rows, "lora_r", 8] if end == "Q4" else ["lora_r"]
            ports += [helper.make_tensor_value_info(f"{half}_{end}", kind, dims)] * 2
    graph, names = without_lifted(load(save(tmp_path, nodes, tensors, inputs=ports)))
    assert names == ("A_Q4", "A_scales", "B_Q4", "B_scales")
    assert [node.name for node in graph.nodes] == ["n", "relu"]
    assert set(graph.inputs) == {"x"} and set(graph.initializers) == {"w"}


@pytest.mark.parametrize("value", ["ax", "bax", "sum"])
def test_branches_with_other_uses_stay(tmp_path: Path, value: str):
    def used(nodes: list[Any]) -> None:
        nodes[-1].output[0] = "z"
        nodes.append(helper.make_node("Concat", ["z", value], ["y"], name="c", axis=2))

    graph, names = without_lifted(load(lifted(tmp_path, used)))
    # The sum itself may be read by many.
    assert names == (("A", "B") if value == "sum" else ())
    assert len(graph.nodes) == (3 if value == "sum" else 6)


def test_graphs_without_lifted_branches_stay(tmp_path: Path):
    nodes, tensors, _ = FORMS["bias"]
    graph = load(save(tmp_path, nodes, tensors))
    assert without_lifted(graph) == (graph, ())


def with_lifted_inputs(model: Path, folder: Path) -> Path:
    """The model with Olive's branches beside its output projections."""
    shutil.copytree(model.parent, folder)
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    nodes: list[Any] = []
    for node in proto.graph.node:
        nodes.append(node)
        if not node.name.endswith("o_proj/MatMul"):
            continue
        base, y = f"{node.name}/base", node.output[0]
        width = next(one.i for one in node.attribute if one.name == "N")
        node.output[0] = base
        names = [f"{node.name}.lora_{half}.MatMul.weight" for half in "AB"]
        for name, dims in zip(names, ((width, 0), (0, width)), strict=True):
            symbolic = [dim or "lora_r" for dim in dims]
            port = helper.make_tensor_value_info(name, TensorProto.FLOAT, symbolic)
            proto.graph.input.extend([port, port])
            empty = numpy_helper.from_array(np.zeros(dims, np.float32), name)
            proto.graph.initializer.append(empty)
        nodes += [
            helper.make_node("MatMul", [node.input[0], names[0]], [f"{y}.a"], name=f"{y}/A"),
            helper.make_node("MatMul", [f"{y}.a", names[1]], [f"{y}.b"], name=f"{y}/B"),
            helper.make_node("Add", [base, f"{y}.b"], [y], name=f"{y}/lora/Add"),
        ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def test_the_base_of_a_graph_with_lifted_adapters(
    model: Callable[[str], Path], tmp_path: Path, compiled: Callable[[str], Path]
):
    """Compiled, it is the base; its adapters' file can be added."""
    import intaglio

    path = with_lifted_inputs(model("llama"), tmp_path / "model")
    chip = intaglio.compile(path, "roma-mini", tmp_path / "out", adapter_slots="4:o_proj")
    (warning,) = (one for one in chip.warnings if "given at run time" in one)
    assert warning.startswith("4 inputs are matrices of adapters")
    prompt = [3, 4, 5]
    assert chip.generate(prompt, 6) == intaglio.load(compiled("llama")).generate(prompt, 6)
    site = chip.program.sites["layers.1.o_proj"]
    a = np.random.default_rng(0).normal(size=(site.columns, 2)).astype(np.float32)
    b = np.random.default_rng(1).normal(size=(2, site.rows)).astype(np.float32)
    name = "model.layers.1.attn.o_proj.lora_{}.MatMul.weight"
    np.savez(tmp_path / "x.npz", **{name.format("A"): a, name.format("B"): b})
    chip.adapters.add("x", tmp_path / "x.npz")
    assert chip.check(tokens=16, adapter="x")["max_error_of_range"] < 0.1
