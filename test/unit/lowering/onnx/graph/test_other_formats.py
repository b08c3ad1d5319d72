"""Models in other forms than ONNX: what they are said to be, and what would export them."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.graph.other_formats import other_format

BUILDER = "python -m onnxruntime_genai.models.builder -i "


def said(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    return str(caught.value)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(path: Path, architecture: str, kinds: list[int], *, tokens: int = 3) -> Path:
    """A GGUF header, without the tensors."""
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("general.name") + struct.pack("<I", 8) + text("Tiny"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, tokens) + text("ab") * tokens,
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, tokens) + bytes(4 * tokens),
        text("general.quantization_version") + struct.pack("<II", 4, 2),
    ]
    infos = [
        text(f"blk.{i}.weight") + struct.pack("<IQQIQ", 2, 64, 64, kind, 0)
        for i, kind in enumerate(kinds)
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs))
    path.write_bytes(head + b"".join(pairs + infos) + bytes(64))
    return path


@pytest.mark.parametrize(
    ("architecture", "kinds", "tensors"),
    [
        ("llama", [2, 2, 0], "3 tensors: 2 Q4_0, 1 F32"),
        ("qwen2", [12, 14, 12, 0, 8], "5 tensors: 2 Q4_K, 1 F32, 1 Q6_K, 1 Q8_0"),
        ("bitnet", [35], "1 tensor: 1 TQ2_0"),
        ("gemma3", [99], "1 tensor: 1 type 99"),
    ],
)
def test_gguf(tmp_path: Path, architecture: str, kinds: list[int], tensors: str):
    path = gguf(tmp_path / "my model.gguf", architecture, kinds, tokens=2000)
    message = said(path)
    assert (
        f"{path}: this is a GGUF file (architecture {architecture}, 'Tiny', {tensors})" in message
    )
    output = tmp_path / "my model-onnx"
    assert f"mobius build-gguf '{path}' --keep-quantized --output '{output}'" in message
    # A folder of such files, whatever their names end in.
    assert "this is a GGUF file" in said(tmp_path)
    assert "this is a GGUF file" in said(path.rename(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    "spoiled",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 61),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1) * 50,
        b"GGUF" + struct.pack("<IQQ", 99, 1, 1),
    ],
)
def test_damaged_gguf(tmp_path: Path, spoiled: bytes):
    (tmp_path / "x.gguf").write_bytes(spoiled)
    assert "this is a GGUF file (architecture unknown)" in said(tmp_path / "x.gguf")


def checkpoint(folder: Path, config: dict[str, Any], *files: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        save_file({"w": np.zeros((2, 2), np.float16)}, folder / name)
    return folder


@pytest.mark.parametrize(
    ("config", "files", "what"),
    [
        (
            {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"},
            ["model.safetensors"],
            "architecture LlamaForCausalLM, bfloat16, weights in 1 file",
        ),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "dtype": "float16",
                "quantization_config": {"quant_method": "gptq", "bits": 4},
            },
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "architecture Qwen2ForCausalLM, float16, quantised by gptq to 4 bits, weights in 2",
        ),
        (
            {"model_type": "phi3", "quantization_config": {"quant_method": "awq"}},
            ["pytorch_model.bin"],
            "architecture phi3, quantised by awq, weights in 1 file",
        ),
    ],
)
def test_checkpoints(tmp_path: Path, config: dict[str, Any], files: list[str], what: str):
    folder = checkpoint(tmp_path / "hf", config, *files)
    for path in (folder, folder / "config.json"):
        message = said(path)
        assert f"{folder}: this is a checkpoint of transformers ({what}" in message
        assert f"{BUILDER}{folder} -o onnx -p int4 -e cpu" in message
        assert f"mobius build --config {folder} onnx" in message
    if files[0].endswith(".safetensors"):
        message = said(folder / files[0])
        assert "holds weights (safetensors, 1 tensor: 1 F16) without the graph" in message
        assert f"{BUILDER}{folder} " in message


def test_weights_alone(tmp_path: Path):
    save_file({"w": np.zeros((2, 2), np.float32)}, tmp_path / "model.safetensors")
    assert "put its config.json and tokenizer beside" in said(tmp_path / "model.safetensors")
    assert said(tmp_path) == f"{tmp_path}: this is a folder, not a model file"


def test_mlx_checkpoints_are_not_sent_to_an_exporter(tmp_path: Path):
    config = {"architectures": ["LlamaForCausalLM"], "quantization": {"bits": 4, "group_size": 64}}
    message = said(checkpoint(tmp_path / "mlx", config, "model.safetensors"))
    assert "quantised by MLX to 4 bits" in message and "builder" not in message


@pytest.mark.parametrize("lora", [True, False])
def test_adapters(tmp_path: Path, lora: bool):
    names = "model.layers.0.q_proj.lora_A.weight" if lora else "w"
    save_file({names: np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors")
    if not lora:
        (tmp_path / "adapter_config.json").write_text("{}")
    message = said(tmp_path / "x.safetensors")
    assert "this is an adapter" in message and "intaglio adapter add OUT NAME" in message


@pytest.mark.parametrize(
    ("names", "suffix", "what"),
    [
        (["a/data.pkl", "a/data/0"], ".pt", "a PyTorch file"),
        (["a/data.pkl", "a/constants.pkl", "a/code/x.py"], ".pt", "a TorchScript program"),
        (["archive_format", "models/model.json"], ".pt2", "a program of torch.export"),
    ],
)
def test_torch(tmp_path: Path, names: list[str], suffix: str, what: str):
    path = tmp_path / f"x{suffix}"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"")
    assert f"{path}: this is {what}, not an ONNX file" in said(path)
    assert "torch.onnx.export" in said(path)


def test_other_files(tmp_path: Path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert "this is a PyTorch file" in said(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "a pointer of Git LFS" in said(path)
    path.write_bytes(b"\x08\0\0\0ORTM" + bytes(50))
    assert "onnxruntime's own format" in said(path)
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    assert other_format(tmp_path / "x.zip") is None
    assert "-m meta-llama/Llama-3.2-1B -o onnx" in said(Path("meta-llama/Llama-3.2-1B"))
    assert "help" not in said(tmp_path / "none.onnx")


def test_onnx_files_are_none_of_these(model):
    assert other_format(model("llama")) is None
    assert other_format(model("llama").parent) is None
