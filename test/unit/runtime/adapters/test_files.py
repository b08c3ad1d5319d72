"""Readers of adapters: every form gives the same matrices; what cannot be used says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file

from intaglio.dialects.errors import UserError
from intaglio.runtime.adapters.files import read_adapter

MODULE = "model.layers.0.self_attn.q_proj"
PREFIX = f"base_model.model.{MODULE}"
A_NAME, B_NAME = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"


def matrices(rank: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return (
        random.normal(size=(rank, 64)).astype(np.float32),
        random.normal(size=(48, rank)).astype(np.float32),
    )


def pair(rank: int = 4) -> dict[str, np.ndarray]:
    return dict(zip((A_NAME, B_NAME), matrices(rank), strict=True))


def test_peft(write_peft):
    a, b = matrices()
    read = read_adapter(write_peft(pair()))
    assert read.form == "peft" and read.base is None
    (one,) = read.pairs
    assert one.module == MODULE and one.rank == 4
    np.testing.assert_array_equal(one.a, a)
    np.testing.assert_allclose(one.b, 2 * b)


def test_peft_by_one_of_its_files(write_peft):
    folder = write_peft(pair())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert read_adapter(folder / name).pairs[0].module == MODULE


@pytest.mark.parametrize(
    ("config", "rank", "scaling"),
    [
        ({"use_rslora": True}, 4, 8 / 2),
        ({"lora_alpha": 3.5}, 4, 3.5 / 4),
        ({"rank_pattern": {"q_proj": 2}}, 2, 8 / 2),
        ({"rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "q_proj": 9}}, 2, 8 / 2),
        ({"alpha_pattern": {"q_proj": 1}}, 4, 1 / 4),
        ({"alpha_pattern": {"v_proj": 1, "proj": 1}}, 4, 8 / 4),
        ({"fan_in_fan_out": True}, 4, 2),
        ({"target_modules": "all-linear"}, 4, 2),
        ({"init_lora_weights": "gaussian"}, 4, 2),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, 4, 2),
        # How a module was chosen says nothing about its matrices.
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, 4, 2),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 2}}, 2, 8 / 2**0.5),
        (
            {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.0\..*q_proj": 3}, "r": 16},
            2,
            3 / 2,
        ),
    ],
)
def test_peft_ranks_and_scalings(write_peft, config, rank: int, scaling: float):
    read = read_adapter(write_peft(pair(rank), **config))
    np.testing.assert_allclose(read.pairs[0].b, scaling * matrices(rank)[1], rtol=1e-6)


def test_element_types(write_peft):
    a, _ = matrices()
    halves = {name: array.astype(np.float16) for name, array in pair().items()}
    one = read_adapter(write_peft(halves)).pairs[0]
    assert one.a.dtype == one.b.dtype == np.float32
    np.testing.assert_allclose(one.a, a, rtol=1e-3)
    bits = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in pair().items()}
    # numpy has no bfloat16, so the file is written by hand.
    folder, data, header = write_peft(pair()), b"", {}
    for name, array in bits.items():
        place = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": place}
        data += array.tobytes()
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    (folder / "adapter_model.safetensors").write_bytes(content)
    one = read_adapter(folder).pairs[0]
    np.testing.assert_allclose(one.a, a, rtol=1e-2)
    np.testing.assert_array_equal(one.a.view(np.uint32) >> 16, bits[A_NAME])


def test_base_is_read(write_peft):
    assert read_adapter(write_peft(pair(), base_sha256="ab")).base == "ab"
    assert read_adapter(write_peft(pair(), {"base_sha256": "cd"})).base == "cd"


def onnx_adapter(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    file = onnxruntime.AdapterFormat()
    file.set_parameters(
        {n: onnxruntime.OrtValue.ortvalue_from_numpy(t) for n, t in tensors.items()}
    )
    file.export_adapter(str(path))
    return path


@pytest.mark.parametrize(
    "names",
    [
        # Olive lifts genai's graphs; Olive converts PEFT's names; ours.
        "model.layers.0.attn.q_proj.lora_{}.MatMul.weight",
        "model.layers.0.self_attn.q_proj.lora_{}.weight",
        "layers.0.q_proj.lora_{}",
        "/model/layers.0/attn/q_proj/lora_{}/MatMul.weight",
    ],
)
@pytest.mark.parametrize("form", ["onnx_adapter", "safetensors", "npz"])
def test_olive(tmp_path: Path, names: str, form: str):
    a, b = matrices()
    tensors = {
        names.format("A"): np.ascontiguousarray(a.T),
        names.format("B"): np.ascontiguousarray(b.T),
    }
    path = tmp_path / f"x.{form}"
    if form == "onnx_adapter":
        onnx_adapter(path, tensors)
    elif form == "safetensors":
        save_file(tensors, path)
    else:
        np.savez(path, **tensors)
    read = read_adapter(path)
    assert read.form == form
    np.testing.assert_array_equal(read.pairs[0].a, a)
    np.testing.assert_array_equal(read.pairs[0].b, b)


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_adapter(path)
    return str(caught.value)


def test_missing_and_unknown_files(tmp_path: Path):
    assert "there is no such adapter" in error_of(tmp_path / "none")
    assert "holds no adapter_config.json" in error_of(tmp_path)
    # PEFT writes an adapter that is called "style" to a folder of this name.
    (tmp_path / "peft" / "style").mkdir(parents=True)
    (tmp_path / "peft" / "style" / "adapter_config.json").write_text("{}")
    assert f"give {tmp_path / 'peft' / 'style'}" in error_of(tmp_path / "peft")
    (tmp_path / "x.gguf").write_bytes(b"1")
    assert "is no adapter of a known form" in error_of(tmp_path / "x.gguf")


def test_a_pickle_is_not_opened(write_peft):
    folder = write_peft(pair())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "only a pickle, which could run code" in error_of(folder)


@pytest.mark.parametrize("size", [0, 5, 60, 400, -1])
def test_truncated_safetensors(write_peft, size: int):
    folder = write_peft(pair())
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "is no whole safetensors file" in error_of(folder)


@pytest.mark.parametrize("size", [0, 5, 60, 400, -400])
def test_truncated_onnx_adapter(tmp_path: Path, size: int):
    a, b = matrices()
    path = onnx_adapter(tmp_path / "x.onnx_adapter", {f"{MODULE}.lora_A": a.T.copy(), "b": b})
    path.write_bytes(path.read_bytes()[:size])
    assert "is no whole .onnx_adapter file" in error_of(path)


def test_truncated_npz(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(9))
    path.write_bytes(path.read_bytes()[:50])
    assert "is no whole .npz file" in error_of(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [A_NAME, B_NAME])
def test_not_finite(write_peft, name: str, value: float):
    tensors = pair()
    tensors[name][1, 1] = value
    assert f"tensor '{name}' has values that are not finite" in error_of(write_peft(tensors))


@pytest.mark.parametrize(("name", "here", "other"), [(A_NAME, "B", "A"), (B_NAME, "A", "B")])
def test_half_is_missing(write_peft, name: str, here: str, other: str):
    tensors = pair()
    del tensors[name]
    assert f"'{MODULE}' has lora_{here} without lora_{other}" in error_of(write_peft(tensors))


def test_ranks_disagree(write_peft):
    tensors = pair() | {B_NAME: matrices(3)[1]}
    assert "A [4, 64] and B [48, 3] of" in error_of(write_peft(tensors))
    message = error_of(write_peft(pair(), r=8))
    assert "has rank 4, the configuration says 8" in message
    # PEFT itself cannot load this: saved in another order, its patterns mean something else.
    message = error_of(write_peft(pair(), rank_pattern={".*_proj": 2, "q_proj": 4}))
    assert "says 2" in message and "PEFT sorts them when it saves" in message


def test_target_without_matrices(write_peft):
    folder = write_peft(pair(), target_modules=["q_proj", "v_proj"])
    assert "the target module 'v_proj' has no matrices" in error_of(folder)
    for excluded in (["v_proj"], ["layers.0.self_attn.v_proj"], r".*\.v_proj"):
        folder = write_peft(pair(), target_modules=["q_proj", "v_proj"], exclude_modules=excluded)
        assert len(read_adapter(folder).pairs) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"peft_type": "ADALORA"}, "of the kind ADALORA"),
        ({"use_qalora": True}, "QA-LoRA pools the activations"),
        ({"use_bdlora": {"nblocks": 2}}, "its matrices are block-diagonal"),
        ({"kasa_config": {"beta": 1}}, "KaSA cuts the base weights"),
        ({"arrow_config": {"top_k": 2}}, "Arrow chooses among several adapters"),
        ({"monteclora_config": {"n": 2}}, "MonteCLoRA draws A anew"),
        ({"alora_invocation_tokens": [1, 2]}, "active after certain tokens only"),
        ({"layer_replication": [[0, 2]]}, "layers are repeated"),
        ({"target_parameters": ["experts"]}, "parameters that are no linear modules"),
        ({"use_tomorrow": True}, "use_tomorrow is true: this variant of LoRA is not known"),
        ({"tomorrow_config": {"a": 1}}, "this variant of LoRA is not known"),
        ({"use_dora": True}, "use_dora is true: DoRA rescales the base weights"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save is ["lm_head"]: whole modules'),
        ({"bias": "all"}, 'bias is "all": biases are trained, but engraved'),
        ({"bias": "lora_only"}, "biases are trained, but engraved"),
        ({"lora_bias": True}, "B has a bias"),
        ({"trainable_token_indices": [1]}, "embedding table are trained"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base weights"),
        ({"init_lora_weights": "olora"}, "changes the base weights"),
        ({"r": 0}, "r is 0, no rank"),
        ({"r": "8"}, 'r is "8", no rank'),
        ({"lora_alpha": None}, "lora_alpha is null, no number"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern['q_proj'] is 1.5, no rank"),
        ({"alpha_pattern": [1]}, "alpha_pattern is no JSON object"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern has '(', which cannot be used as a pattern: it"),
    ],
)
def test_configurations_that_cannot_be_used(write_peft, config, message: str):
    assert message in error_of(write_peft(pair(), **config))


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_damaged_configuration(write_peft, content: str):
    folder = write_peft(pair())
    (folder / "adapter_config.json").write_text(content)
    assert "is no JSON" in error_of(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{PREFIX}.lora_magnitude_vector", "it is DoRA"),
        (f"{PREFIX}.lora_magnitude_vector.default.weight", "it is DoRA"),
        (f"{PREFIX}.hada_w1_a", "is neither lora_A nor lora_B of a module"),
        (f"{PREFIX}.lora_diag", "it is KaSA"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "tokens of"),
        ("base_model.model.lm_head.modules_to_save.weight", "it replaces whole modules"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "the embedding table"),
        ("base_model.model.model.embed_tokens.weight", "it is the embedding table"),
        ("base_model.model.lm_head.weight", "it is the head"),
        (f"{PREFIX}.bias", "it trains biases"),
        (f"{PREFIX}.lora_B.bias", "it trains biases"),
        ("base_model.model.model.norm.weight", "is neither lora_A nor lora_B of a module"),
    ],
)
def test_tensors_that_cannot_be_used(write_peft, name: str, message: str):
    tensors = pair() | {name: np.zeros((4, 4), np.float32)}
    message_found = error_of(write_peft(tensors, target_modules="x"))
    assert name in message_found and message in message_found


def test_shapes_that_are_no_matrices(write_peft):
    tensors = pair() | {A_NAME: np.zeros((4, 64, 1), np.float32)}
    assert "has shape [4, 64, 1]; A and B are matrices" in error_of(write_peft(tensors))
    tensors = pair() | {A_NAME: np.zeros((0, 64), np.float32)}
    assert "has shape [0, 64]" in error_of(write_peft(tensors))


def test_integers_are_refused(write_peft, tmp_path: Path):
    tensors = pair() | {A_NAME: np.zeros((4, 64), np.int8)}
    assert "is I8; float16, bfloat16 and float32" in error_of(write_peft(tensors))
    name = "model.layers.0.attn.q_proj.lora_A.MatMul.weight_Q4"
    path = onnx_adapter(tmp_path / "x.onnx_adapter", {name: np.zeros((8, 4, 16), np.uint8)})
    assert "is of an adapter that is quantised already" in error_of(path)


def test_names_that_meet(write_peft):
    tensors = pair() | {f"{PREFIX}.lora_A.other.weight": matrices()[0]}
    assert "are lora_A of one module" in error_of(write_peft(tensors, target_modules="x"))


def test_peft_tensors_without_their_configuration(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_file(pair(), path)
    assert "its scaling is in an adapter_config.json, which is missing" in error_of(path)
    # A square site: the inner size tells A [r, in] from A [in, r].
    square = {A_NAME: np.ones((4, 8), np.float32), B_NAME: np.ones((8, 4), np.float32)}
    save_file(square, path)
    assert "which is missing" in error_of(path)
    save_file({name: tensor.T.copy() for name, tensor in square.items()}, path)
    assert read_adapter(path).pairs[0].rank == 4


def test_an_empty_file(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path)
    assert "holds no lora_A and lora_B" in error_of(path)


def test_modules_are_in_natural_order(write_peft):
    tensors = {
        name.replace("layers.0", f"layers.{layer}"): tensor
        for layer in (10, 9, 1)
        for name, tensor in pair().items()
    }
    modules = [one.module for one in read_adapter(write_peft(tensors)).pairs]
    assert [name.split(".")[2] for name in modules] == ["1", "9", "10"]


def test_configuration_of_peft_as_it_is_written(write_peft):
    """Keys that newer versions of PEFT add, with their defaults, change nothing."""
    folder = write_peft(pair())
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "kasa_config": None,
        "lora_ga_config": None,
        "monteclora_config": None,
        "use_bdlora": None,
        "velora_config": None,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_bias": False,
        "megatron_config": None,
        "peft_version": "0.18.0",
        "qalora_group_size": 16,
        "target_parameters": None,
        "trainable_token_indices": None,
        "use_qalora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    path.write_text(json.dumps(config))
    assert read_adapter(folder).pairs[0].rank == 4


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["(a+)+", "(.*.*.*)*x", "(q|q_|q_p)*z", "(model.*)*!"])
def test_patterns_that_blow_up(write_peft, key: str):
    """Python's own matching would take years."""
    tensors = {name.replace("q_proj", "a" * 60 + "q_proj"): t for name, t in pair().items()}
    read = read_adapter(write_peft(tensors, rank_pattern={key: 9}, alpha_pattern={key: 1}))
    assert read.pairs[0].rank == 4 and len(read.warnings) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank_pattern": {"(?=q)q_proj": 4}}, "looking ahead or back"),
        ({"alpha_pattern": {"(": 4}}, "cannot be used as a pattern: it is no regular expression"),
        (
            {"alpha_pattern": {"a" * 2000: 4}},
            "a...', which cannot be used as a pattern: it has 201",
        ),
        ({"lora_alpha": 10**400}, "000..., no number of a usual size"),
        ({"r": 10**400}, "000..., no rank"),
        ({"lora_alpha": float("inf")}, "lora_alpha is Infinity, no number"),
        ({"alpha_pattern": {"q_proj": 10**12}}, "no number of a usual size"),
    ],
)
def test_bounds_of_the_configuration(write_peft, config, message: str):
    assert message in error_of(write_peft(pair(), **config))


def test_many_patterns(write_peft, monkeypatch: pytest.MonkeyPatch):
    """A rank for each module, as PEFT writes them; and more than can be matched in good time."""
    folder = write_peft(
        pair(), rank_pattern={f"layers.{i}.self_attn.q_proj": 4 for i in range(200)}
    )
    assert "and 195 more, which match no module" in read_adapter(folder).warnings[0]
    monkeypatch.setattr("intaglio.runtime.text.patterns._STATE", 20_000)
    assert "all of them together take too long to match" in error_of(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"r": ' + "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"]
)
def test_json_that_is_nested_or_long(write_peft, text: str):
    folder = write_peft(pair())
    (folder / "adapter_config.json").write_text(text)
    assert error_of(folder).startswith(str(folder / "adapter_config.json"))


def bomb(path: Path, header_shape: tuple[int, ...], size: int, dtype: str = "<f4") -> Path:
    """An .npz whose A is said to have a shape, and unpacks to so many zeros."""
    import io
    import zipfile

    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        start, {"descr": dtype, "fortran_order": False, "shape": header_shape}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for half in "AB":
            with file.open(f"layers.0.q_proj.lora_{half}.npy", "w") as member:
                member.write(start.getvalue())
                for _ in range(size >> 20):
                    member.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((64, 4 << 20), 64 << 20, "more than 64 times as many"),
        ((1 << 40, 1 << 20), 1 << 20, "is not as long as its shape says"),
        ((1 << 18,), 1 << 20, "A and B are matrices"),
        ((0, 5), 0, "A and B are matrices"),
    ],
)
def test_compressed_files_are_not_unpacked_blindly(
    tmp_path: Path, shape: tuple[int, ...], size: int, message: str, monkeypatch: pytest.MonkeyPatch
):
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("the contents are read")

    monkeypatch.setattr("numpy.load", load)
    assert message in error_of(bomb(tmp_path / "x.npz", shape, size))


def test_shapes_of_any_file_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("intaglio.runtime.adapters.files._LARGEST", 1000)
    tensors = {"layers.0.q_proj.lora_A": np.zeros((64, 4), np.float32)}
    np.savez(tmp_path / "x.npz", **tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    for name in ("x.npz", "x.safetensors"):
        assert "take 1,024 bytes in float32, at most 1,000 are read" in error_of(tmp_path / name)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "x"])
def test_a_whole_model_is_refused_by_its_names(tmp_path: Path, name: str):
    save_file({name: np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    assert f"tensor '{name}' " in error_of(tmp_path / "model.safetensors")


def test_an_array_that_is_no_archive(tmp_path: Path):
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros((4, 4), np.float32))
    assert "is no whole .npz file" in error_of(path)


# --- numbers and layers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "dtype", "config", "message"),
    [
        (B_NAME, 3e38, np.float32, {}, "times its scaling of 2 (alpha 8, r 4) has values up to 6"),
        (B_NAME, -3e38, np.float32, {"use_rslora": True}, "its scaling of 4 (alpha 8, r 4)"),
        (B_NAME, 1e38, np.float32, {"lora_alpha": -100}, "its scaling of -25 (alpha -100, r 4)"),
        (A_NAME, 1e300, np.float64, {}, f"tensor '{A_NAME}' has values up to 1e+300"),
        (B_NAME, -1e39, np.float64, {}, f"tensor '{B_NAME}' has values up to 1e+39"),
        (A_NAME, np.inf, np.float16, {}, f"tensor '{A_NAME}' has values that are not finite"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_beyond_float32(write_peft, name, value: float, dtype, config, message: str):
    tensors = {key: array.astype(dtype) for key, array in pair().items()}
    tensors[name][1, 2] = value
    assert message in error_of(write_peft(tensors, **config))


def test_large_values_of_float16_times_a_large_scaling(write_peft):
    tensors = {key: array.astype(np.float16) for key, array in pair().items()}
    tensors[B_NAME][1, 2] = 60000
    assert read_adapter(write_peft(tensors, lora_alpha=4e8)).pairs[0].b[1, 2] == np.float32(6e12)


@pytest.mark.parametrize(
    "config", [{"layers_to_transform": [1]}, {"layers_to_transform": 0, "layers_pattern": "blocks"}]
)
def test_no_matrices_of_the_layers(write_peft, config):
    assert "and no matrices are of these layers" in error_of(write_peft(pair(), **config))


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"layers_to_transform": [1]}, {1}),
        ({"layers_to_transform": 0}, {0}),
        ({"layers_to_transform": [0, 2], "layers_pattern": ["blocks", "layers"]}, {0, 2}),
        ({"layers_to_transform": [0], "layers_pattern": []}, {0}),
        ({"layers_to_transform": [0], "layers_pattern": 5.5}, {0, 1, 2}),
        ({"layers_to_transform": []}, {0, 1, 2}),
        ({"layers_to_transform": None}, {0, 1, 2}),
        # A target that is a whole name is meant whatever its layer.
        (
            {"layers_to_transform": [0], "target_modules": ["q_proj", MODULE.replace("0", "2")]},
            {0, 2},
        ),
    ],
)
def test_layers_to_transform(write_peft, config, layers: set[int]):
    tensors = {
        name.replace("layers.0", f"layers.{i}"): array
        for i in range(3)
        for name, array in pair().items()
    }
    read = read_adapter(write_peft(tensors, **config))
    assert {int(p.module.split(".")[2]) for p in read.pairs} == layers
    left = {i for i in range(3) if f"layers.{i}." in "".join(read.warnings)}
    assert left == {0, 1, 2} - layers


# --- folders of other tools ---------------------------------------------------------------------


def test_mlx(tmp_path: Path):
    config = {"fine_tune_type": "lora", "num_layers": 8, "lora_parameters": {"rank": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"model.layers.0.self_attn.q_proj.lora_a": np.zeros((64, 8), np.float32)}
    save_file(tensors, tmp_path / "adapters.safetensors")
    for path in (tmp_path, tmp_path / "adapters.safetensors"):
        assert "lora_a and lora_b transposed" in error_of(path)
    assert "is the configuration of an MLX adapter, not of PEFT's" in error_of(tmp_path)


def test_shards(write_peft):
    folder = write_peft(pair())
    whole = folder / "adapter_model.safetensors"
    whole.rename(folder / "adapter_model-00001-of-00002.safetensors")
    message = error_of(folder)
    assert "but parts of it: adapter_model-00001-of-00002.safetensors" in message
    assert "join them" in message and "safe_serialization" not in message


def test_no_weights(write_peft):
    folder = write_peft(pair())
    (folder / "adapter_model.safetensors").unlink()
    assert "save the adapter again, with its weights" in error_of(folder)
    (folder / "adapter_model.bin").touch()
    assert "only a pickle" in error_of(folder) and "safe_serialization=True" in error_of(folder)
