"""onnxruntime as the judge, on tiny models."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intaglio.dialects.errors import UserError
from intaglio.runtime import reference as module
from intaglio.runtime.reference import Reference, nodes_of

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
