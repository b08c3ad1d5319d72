"""Layers without keys and values: convolutions (LFM2), linear attention (Qwen3.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from decoder_model import Model, Shape

MS = "com.microsoft"


def states(shape: Shape, layer: int) -> dict[str, list[int]]:
    """Kinds and sizes of what a layer keeps of the last token."""
    match shape.mixer(layer):
        case "convolution":
            return {"conv": [shape.hidden, shape.taps - 1]}
        case "linear":
            keys, values, width = shape.linear
            return {
                "conv": [(2 * keys + values) * width, shape.taps - 1],
                "recurrent": [values, width, width],
            }
        case _:
            return {}


def convolution(m: Model, layer: int, x: str) -> str:
    """B * x through a convolution, times C; the product that follows is the caller's."""
    path, hidden = f"/model/layers.{layer}/conv", m.shape.hidden
    packed = m.product(f"{path}/in_proj", x, 3 * hidden, hidden)
    packed = m.node("Transpose", [packed], [f"{path}/t1"], f"{path}/Transpose_1", perm=[0, 2, 1])
    parts = [f"{path}/b", f"{path}/c", f"{path}/x"]
    sizes = m.constant(f"{path}/sizes", [hidden] * 3)
    m.node("Split", [packed, sizes], parts, f"{path}/Split", axis=1)
    y = m.node("Mul", [parts[0], parts[2]], [f"{path}/bx"], f"{path}/Mul_1")
    y = _convolved(m, layer, f"{path}/conv", y, hidden)
    y = m.node("Mul", [parts[1], y], [f"{path}/cy"], f"{path}/Mul_2")
    return m.node("Transpose", [y], [f"{path}/t2"], f"{path}/Transpose_2", perm=[0, 2, 1])


def linear_attention(m: Model, layer: int, x: str) -> str:
    """The gated delta rule, with the convolution before it and the gated norm behind it."""
    shape, path = m.shape, f"/model/layers.{layer}/linear_attn"
    name, hidden = path[1:].replace("/", "."), shape.hidden
    keys, values, width = shape.linear
    sizes = [keys * width, keys * width, values * width]
    packed = m.product(f"{path}/qkv_proj", x, sum(sizes), hidden)
    z = m.product(f"{path}/z_proj", x, sizes[2], hidden)
    a, b = (m.product(f"{path}/{one}_proj", x, values, hidden) for one in "ab")
    packed = m.node("Transpose", [packed], [f"{path}/t1"], f"{path}/Transpose_1", perm=[0, 2, 1])
    packed = _convolved(m, layer, path, packed, sum(sizes), activation="silu")
    packed = m.node("Transpose", [packed], [f"{path}/t2"], f"{path}/Transpose_2", perm=[0, 2, 1])
    parts = [f"{path}/{letter}" for letter in "qkv"]
    cuts = m.constant(f"{path}/sizes", sizes)
    m.node("Split", [packed, cuts], parts, f"{path}/Split", axis=-1)
    for place, letter in enumerate("qk"):
        apart = m.constant(f"{path}/{letter}_apart", [0, 0, keys, width])
        together = m.constant(f"{path}/{letter}_together", [0, 0, keys * width])
        at = f"{path}/{letter}_l2norm"
        y = m.node("Reshape", [parts[place], apart], [f"{at}/apart"], f"{at}/Reshape_1")
        y = m.node("LpNormalization", [y], [f"{at}/unit"], f"{at}/LpNormalization", axis=-1, p=2)
        parts[place] = m.node("Reshape", [y, together], [f"{at}/y"], f"{at}/Reshape_2")
    gates = [f"{path}/decay", f"{path}/beta"]
    rates = -np.exp(m.random.uniform(0, 2.5, values)).astype(np.float32)
    bias = m.random.uniform(-6, -2, values).astype(np.float32)
    inputs = [a, m.tensor(f"{name}.dt_bias", lambda: bias)]
    inputs += [m.tensor(f"{name}.neg_exp_A", lambda: rates), b]
    m.node("LinearAttentionGate", inputs, gates, f"{path}/LinearAttentionGate", MS)
    y = m.node(
        "LinearAttention",
        [*parts, f"past.{layer}.recurrent", *gates],
        [f"{path}/read", f"present.{layer}.recurrent"],
        f"{path}/LinearAttention",
        MS,
        q_num_heads=keys,
        kv_num_heads=values,
        update_rule="gated_delta",
    )
    inputs = [y, m.gamma(f"{name}.norm", width), z]
    norm = f"{path}/GatedRMSNorm"
    return m.node("GatedRMSNorm", inputs, [f"{norm}/y"], norm, MS, epsilon=1e-6)


def _convolved(m: Model, layer: int, path: str, x: str, channels: int, **more: Any) -> str:
    taps = m.shape.taps

    def weights() -> np.ndarray:
        drawn = m.random.standard_normal((channels, 1, taps)) / taps**0.5
        return drawn.astype(np.float32)

    name = path[1:].replace("/", ".")
    inputs = [x, m.tensor(f"{name}.conv1d.weight", weights), "", f"past.{layer}.conv"]
    outputs = [f"{path}/convolved", f"present.{layer}.conv"]
    return m.node("CausalConvWithState", inputs, outputs, f"{path}/Convolution", MS, **more)
