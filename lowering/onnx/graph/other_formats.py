"""Models that are given in another form than ONNX: what they are, and how they become ONNX.

Only headers are read, within bounds, and nothing is unpickled. The commands are those of
onnxruntime-genai 0.18 and mobius-onnx 0.1.
"""

from __future__ import annotations

import json
import mmap
import shlex
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON

_HEADER = 64 << 20
"""Bytes of a header that are read."""
_ENTRIES = 1 << 20
"""Entries of it, and elements of its lists."""
_LFS = b"version https://git-lfs.github.com/spec/"


def other_format(path: Path) -> UserError | None:
    """What to say of a file or folder that is a model, but no ONNX file; None for all others."""
    try:
        if path.is_dir():
            return _of_folder(path)
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return None  # Whoever reads it next says so.
    if start.startswith(b"GGUF"):
        return _gguf(path)
    if start.startswith(_LFS):
        return UserError(
            "this is a pointer of Git LFS, not the file itself",
            file=str(path),
            hint=f"git lfs pull, in {_quoted(path.parent)}",
        )
    if start[4:8] == b"ORTM":
        return UserError(
            "this is a model in onnxruntime's own format (.ort)",
            file=str(path),
            hint="give the .onnx file that it was made from; there is no way back",
        )
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= path.stat().st_size:
        return _safetensors(path)
    if path.name == "config.json" and start.lstrip().startswith(b"{"):
        return _checkpoint(path.parent)
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start[:1] == b"\x80" and path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        return _torch(path, "a PyTorch file")
    return None


def hub_hint(path: str) -> str | None:
    """What would help where the path of no file looks like a model's name on a hub."""
    owner, slash, name = path.partition("/")
    if not slash or "/" in name or owner in ("", ".", "..") or name.endswith(".onnx"):
        return None
    return (
        f"if this is a model's name on a hub, export it first: {_BUILDER} -m {shlex.quote(path)} "
        "-o onnx -p int4 -e cpu, then compile onnx/model.onnx"
    )


_BUILDER = "python -m onnxruntime_genai.models.builder"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _of_folder(folder: Path) -> UserError | None:
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".onnx") for name in names):
        return None
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return _gguf(folder / gguf[0])
    return _checkpoint(folder)


# --- checkpoints of PyTorch and transformers ----------------------------------------------------

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def _checkpoint(folder: Path) -> UserError | None:
    """What a folder with the configuration and weights of transformers is."""
    config = _json(folder / "config.json")
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS)
    if not config or not weights:
        return None
    parts = [f"architecture {_architecture(config)}"]
    if dtype := config.get("dtype", config.get("torch_dtype")):
        parts.append(f"{str(dtype)[:20]}")
    by_mlx = config.get("quantization")
    mlx = isinstance(by_mlx, dict) and "bits" in by_mlx
    if isinstance(by_mlx, dict) and "bits" in by_mlx:
        parts.append(f"quantised by MLX to {str(by_mlx['bits'])[:5]} bits")
    elif isinstance(quantised := config.get("quantization_config"), dict):
        method = str(quantised.get("quant_method", "a method without a name"))[:40]
        bits = quantised.get("bits")
        parts.append(f"quantised by {method}" + (f" to {bits} bits" if type(bits) is int else ""))
    parts.append(f"weights in {len(weights)} file{'' if len(weights) == 1 else 's'}")
    place = _quoted(folder)
    if mlx:
        hint = "export the checkpoint that it was made from: MLX's weights are read by no exporter"
    else:
        hint = (
            f"export it: {_BUILDER} -i {place} -o onnx -p int4 -e cpu --extra_options "
            "hf_token=false, then compile onnx/model.onnx; an architecture that this builder does "
            f"not know may be one of mobius-onnx: mobius build --config {place} onnx, then compile "
            "with --weights int4:32"
        )
    what = f"this is a checkpoint of transformers ({', '.join(parts)}), not an ONNX file"
    return UserError(what, file=str(folder), hint=hint)


def _architecture(config: Mapping[str, JSON]) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0][:80]
    return str(config.get("model_type", "without a name"))[:80]


def _safetensors(path: Path) -> UserError:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        text = file.read(length) if length <= _HEADER else b""
    header = _object(text)
    kinds: Counter[str] = Counter()
    lora = False
    for name, entry in header.items():
        if name != "__metadata__" and isinstance(entry, dict):
            kinds[str(entry.get("dtype"))[:10]] += 1
            lora = lora or "lora_" in name
    if lora or (path.parent / "adapter_config.json").is_file():
        return UserError(
            "this is an adapter, not a model",
            file=str(path),
            hint="compile its base with --adapter-slots RANK -o OUT, then: intaglio adapter add "
            f"OUT NAME {_quoted(path.parent)}",
        )
    whole = _checkpoint(path.parent)
    what = f"this file holds weights (safetensors, {_tensors(kinds)}) without the graph"
    hint = (
        whole.hint
        if whole is not None
        else "an exporter needs the whole checkpoint: put its config.json and tokenizer beside, "
        f"then: {_BUILDER} -i {_quoted(path.parent)} -o onnx -p int4 -e cpu --extra_options "
        "hf_token=false"
    )
    return UserError(what, file=str(path), hint=hint)


def _archive(path: Path) -> UserError | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [one.filename for one in archive.infolist()[:_ENTRIES]]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        return _torch(path, "a TorchScript program")
    if "data.pkl" in ends:
        return _torch(path, "a PyTorch file")
    if path.suffix == ".pt2" or "archive_format" in ends:
        return _torch(path, "a program of torch.export")
    return None


def _torch(path: Path, what: str) -> UserError:
    whole = _checkpoint(path.parent)
    hint = (
        whole.hint
        if whole is not None
        else "export the model with torch.onnx.export(..., dynamo=True), with its past keys and "
        f"values as inputs, or from a checkpoint with its config.json: {_BUILDER} -i FOLDER -o "
        "onnx -p int4 -e cpu --extra_options hf_token=false"
    )
    return UserError(f"this is {what}, not an ONNX file", file=str(path), hint=hint)


def _json(path: Path) -> dict[str, JSON]:
    try:
        return _object(path.read_bytes()) if path.stat().st_size <= _HEADER else {}
    except OSError:
        return {}


def _object(text: bytes) -> dict[str, JSON]:
    try:
        content: JSON = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _tensors(kinds: Mapping[str, int]) -> str:
    """`291 tensors: 225 Q4_0, 65 F32, 1 Q6_K`."""
    count = sum(kinds.values())
    several = sorted(kinds.items(), key=lambda one: (-one[1], one[0]))[:4]
    text = ", ".join(f"{number:,} {kind}" for kind, number in several)
    return f"{count:,} tensor{'' if count == 1 else 's'}" + (f": {text}" if text else "")


# --- GGUF ---------------------------------------------------------------------------------------

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _LIST = 8, 9
_GGML = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
"""Names of the types of tensors (ggml.h)."""


class _Damaged(Exception):
    pass


class _GGUF:
    """Reads a GGUF header (ggml's docs/gguf.md), little-endian, version 2 and 3."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 4
        self.left = _ENTRIES

    def number(self, code: str) -> int:
        size = struct.calcsize(f"<{code}")
        if self.place + size > min(len(self.data), _HEADER):
            raise _Damaged
        (value,) = struct.unpack_from(f"<{code}", self.data, self.place)
        self.place += size
        return value

    def text(self) -> str:
        length = self.number("Q")
        start = self.place
        self.skip(length)
        return self.data[start : start + min(length, 200)].decode(errors="replace")

    def skip(self, size: int) -> None:
        self.place += size
        if self.place > min(len(self.data), _HEADER):
            raise _Damaged

    def count(self, number: int) -> int:
        self.left -= number
        if self.left < 0:
            raise _Damaged
        return number

    def value(self, kind: int, depth: int = 0) -> JSON:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _LIST or depth > 4:
            raise _Damaged
        inner, length = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(length * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(self.count(length)):
                self.value(inner, depth + 1)
        return None


def _gguf(path: Path) -> UserError:
    known: dict[str, JSON] = {}
    kinds: Counter[str] = Counter()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _read_gguf(_GGUF(data), known, kinds)
    except (_Damaged, OSError, ValueError, struct.error):
        pass  # What was read until there is said.
    parts = [f"architecture {str(known.get('general.architecture', 'unknown'))[:40]}"]
    if name := known.get("general.name"):
        parts.append(f"'{str(name)[:60]}'")
    if kinds:
        parts.append(_tensors(kinds))
    output = _quoted(path.with_name(f"{path.stem}-onnx"))
    return UserError(
        f"this is a GGUF file ({', '.join(parts)}), not an ONNX file",
        file=str(path),
        hint=f"convert it with mobius-onnx (pip install 'mobius-onnx[gguf]'): mobius build-gguf "
        f"{_quoted(path)} --keep-quantized --output {output}, then compile the model.onnx in it; "
        f"what that keeps in floating point needs --weights int8:32",
    )


def _read_gguf(reader: _GGUF, known: dict[str, JSON], kinds: Counter[str]) -> None:
    if reader.number("I") not in (2, 3):
        raise _Damaged
    tensors, pairs = reader.number("Q"), reader.number("Q")
    for _ in range(reader.count(pairs)):
        key = reader.text()
        known[key] = reader.value(reader.number("I"))
    for _ in range(reader.count(tensors)):
        reader.text()
        reader.skip(8 * reader.count(reader.number("I")))
        kind = reader.number("I")
        kinds[_GGML.get(kind, f"type {kind}")] += 1
        reader.number("Q")
