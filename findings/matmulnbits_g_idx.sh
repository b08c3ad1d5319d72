#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: com.microsoft.MatMulNBits with an input g_idx that reorders nothing
# (column k lies in block k / block_size, as without g_idx) is another product.
#   4 bits, packed zero points: they are ignored, every code is taken around 8.
#   2 bits, with or without zero points: neither the stated ones nor the default give the result.
#   4 bits without zero points, or with float ones: right.
# Float32, accuracy_level 0. numpy computes (code - zero) * scale. Output seen:
#   4 bits: error 7.1 with g_idx, 1.8e-06 without; 3e-06 from the product around 8
#   2 bits: error 8.65 and 11.4 with g_idx, 4.1e-07 without
# Exit code 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.22.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

K, N, BLOCK = 128, 16, 32
rng = np.random.default_rng(1)


def packed(values, bits):
    each = 8 // bits
    parts = values.reshape(*values.shape[:-1], -1, each) << np.arange(each) * bits
    return parts.sum(-1).astype(np.uint8)


def error(bits, points, order):
    codes = rng.integers(0, 1 << bits, (N, K // BLOCK, BLOCK))
    zeros = rng.integers(0, 1 << bits, (N, K // BLOCK))
    scales = (0.1 * rng.random((N, K // BLOCK))).astype(np.float32)
    tensors = {"B": packed(codes, bits), "scales": scales}
    names = ["A", "B", "scales", "", ""]
    if points:
        tensors["points"], names[3] = packed(zeros, bits), "points"
    if order:
        tensors["g_idx"], names[4] = (np.arange(K) // BLOCK).astype(np.int32), "g_idx"
    node = helper.make_node(
        "MatMulNBits", names, ["Y"], domain="com.microsoft", K=K, N=N, bits=bits, block_size=BLOCK
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    a = rng.standard_normal((3, K)).astype(np.float32)
    y = session.run(None, {"A": a})[0]
    middle = np.full_like(zeros, 1 << (bits - 1))

    def product(offset):
        return a @ ((codes - offset[..., None]) * scales[..., None]).reshape(N, K).T

    stated = zeros if points else middle
    return float(np.abs(y - product(stated)).max()), float(np.abs(y - product(middle)).max())


with_order, around_8 = error(4, True, True)
without, _ = error(4, True, False)
print(f"4 bits: error {with_order:.3g} with g_idx, {without:.2g} without; "
      f"{around_8:.2g} from the product around 8")
two, _ = error(2, False, True)
two_points, two_middle = error(2, True, True)
right, _ = error(2, True, False)
print(f"2 bits: error {two:.3g} and {two_points:.3g} with g_idx, {right:.2g} without")
default, _ = error(4, False, True)
as_seen = with_order > 1 and around_8 < 1e-4 and without < 1e-4 and default < 1e-4
as_seen = as_seen and min(two, two_points, two_middle) > 1 and right < 1e-4
raise SystemExit(0 if as_seen else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
