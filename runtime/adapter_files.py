"""Reads LoRA adapters in the forms that trainers and exporters write.

- A **PEFT folder**: `adapter_config.json` beside `adapter_model.safetensors`. A is [r, in], B
  [out, r]; the scaling `alpha / r` (rsLoRA: `alpha / sqrt(r)`) is in the configuration, with ranks
  and alphas by module name where it has patterns.
- An onnxruntime **`.onnx_adapter`** file, as Olive's and genai's tools write it: A [in, r],
  B [r, out], the scaling folded into B.
- The same matrices as Olive writes them to a lone **`.safetensors`** or **`.npz`** file.
- A folder that `intaglio adapter add` wrote.

What comes out is always A [r, in] and B [out, r] with the scaling folded into B, in float32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.output import ADAPTER_DESCRIPTION, ADAPTER_FLOATS
from intaglio.dialects.errors import UserError

Floats = npt.NDArray[np.float32]

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
ONNX_SUFFIX = ".onnx_adapter"
BASE_KEY = "base_sha256"
"""Where an adapter file says which base it was trained on: a key of `adapter_config.json` or of the
metadata of a safetensors file."""

_FORMS = (
    f"a PEFT folder ({PEFT_CONFIG} and {PEFT_WEIGHTS}), a {ONNX_SUFFIX} file, or Olive's "
    ".safetensors or .npz"
)
_WHOLE = "copy or save the adapter again"
_TENSOR = re.compile(
    r"^(?P<module>.+?)[./]lora_(?P<half>[AB])(?:[./](?!weight)\w+)?(?:[./]weight)?$"
)
_HALVES = ("A", "B")


@dataclass(frozen=True, eq=False)
class Pair:
    """The low-rank branch of one module: y += B (A x).

    Attributes:
        module: the module's name in the file, such as `model.layers.0.self_attn.q_proj`.
        a: float32 [r, in].
        b: float32 [out, r], the scaling included.
    """

    module: str
    a: Floats
    b: Floats

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """An adapter as it was read, matched to nothing yet.

    Attributes:
        path: what was read.
        form: peft, onnx_adapter, safetensors, npz or intaglio.
        pairs: in the order of the modules' names.
        base: hash of the base it was trained on, where the file states one.
    """

    path: Path
    form: str
    pairs: tuple[Pair, ...]
    base: str | None = None


def read_adapter(path: str | Path) -> AdapterFile:
    """Reads an adapter of any known form.

    Raises:
        UserError: there is no such file, it is of another form, damaged, incomplete, or asks for
            what low-rank branches beside matrices cannot express.
    """
    path = Path(path)
    if path.is_dir():
        if (path / ADAPTER_DESCRIPTION).is_file() and (path / ADAPTER_FLOATS).is_file():
            return _read_stored(path)
        return _read_peft(path)
    if not path.exists():
        raise UserError("there is no such adapter", file=str(path), hint=f"give {_FORMS}")
    if path.name in (PEFT_CONFIG, PEFT_WEIGHTS) and (path.parent / PEFT_CONFIG).is_file():
        return _read_peft(path.parent)
    if path.suffix == ONNX_SUFFIX:
        return AdapterFile(path, "onnx_adapter", _pairs(path, _onnx_tensors(path), _of_olive))
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        pairs = _pairs(path, tensors, _of_olive)
        return AdapterFile(path, "safetensors", pairs, metadata.get(BASE_KEY))
    if path.suffix == ".npz":
        return AdapterFile(path, "npz", _pairs(path, _npz_tensors(path), _of_olive))
    raise UserError("is no adapter of a known form", file=str(path), hint=f"give {_FORMS}")


# --- tensors ------------------------------------------------------------------------------------


_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def read_safetensors(path: Path) -> tuple[dict[str, Floats], dict[str, str]]:
    """Tensors of a safetensors file as float32, and its metadata.

    Raises:
        UserError: the file is damaged or cannot be read, or has tensors that are no floats.
    """
    from safetensors import SafetensorError, deserialize, safe_open

    data = _bytes_of(path)
    try:
        tensors = {name: _tensor(path, name, entry) for name, entry in deserialize(data)}
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
    except SafetensorError as error:
        raise UserError(
            f"is no whole safetensors file: {error}", file=str(path), hint=_WHOLE
        ) from error
    return tensors, metadata or {}


def _tensor(path: Path, name: str, entry: Mapping[str, Any]) -> Floats:
    # `safetensors.numpy` would do, but for BF16, which numpy has not.
    kind = entry["dtype"]
    if kind not in _DTYPES:
        raise UserError(
            f"tensor '{name}' is {kind}; float16, bfloat16 and float32 are understood",
            file=str(path),
            hint="save the adapter in floating point",
        )
    stored = np.frombuffer(entry["data"], _DTYPES[kind]).reshape(entry["shape"])
    if kind == "BF16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _onnx_tensors(path: Path) -> dict[str, Floats]:
    import onnxruntime

    # onnxruntime's own message for a missing file names a source line of it.
    _bytes_of(path)
    tensors: dict[str, Floats] = {}
    try:
        # The binding takes text, whatever its annotation says.
        file = onnxruntime.AdapterFormat.read_adapter(
            str(path)  # pyright: ignore[reportArgumentType]
        )
        arrays = {name: value.numpy() for name, value in file.get_parameters().items()}
    except Exception as error:  # onnxruntime raises RuntimeError, and its own for odd types.
        raise UserError(
            f"is no whole {ONNX_SUFFIX} file of floats", file=str(path), hint=_WHOLE
        ) from error
    for name, array in sorted(arrays.items()):
        tensors[name] = _float32(path, name, array)
    return tensors


def _npz_tensors(path: Path) -> dict[str, Floats]:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"is no whole .npz file: {error}", file=str(path), hint=_WHOLE) from error
    return {name: _float32(path, name, array) for name, array in arrays.items()}


def _float32(path: Path, name: str, array: npt.NDArray[Any]) -> Floats:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if any(part in name for part in ("_Q4", "_Q8", "_scales", "quant")):
        raise UserError(
            f"tensor '{name}' is of an adapter that is quantised already",
            file=str(path),
            hint="add the adapter in floating point; its format on the chip is the target's",
        )
    raise UserError(
        f"tensor '{name}' is {array.dtype}; float16 and float32 are understood",
        file=str(path),
        hint="save the adapter in floating point",
    )


# --- pairs --------------------------------------------------------------------------------------

Oriented = tuple[Floats, Floats]
Orient = Callable[[Path, str, Floats, Floats], Oriented]

_REFUSED = (
    ("lora_magnitude_vector", "it is DoRA, which rescales the base weights"),
    ("modules_to_save", "it replaces whole modules, which are engraved"),
    ("lora_embedding", "it adapts the embedding table, which is engraved"),
    ("lora_diag", "it is KaSA, which cuts the base weights"),
    ("lora_velora", "it is VeLoRA's, which the finished adapter does not need: delete it"),
    ("lora_monteclora", "it is MonteCLoRA's, which draws A anew"),
    ("token_adapter", "it trains tokens of the embedding table, which is engraved"),
    ("embed_tokens.weight", "it is the embedding table, which is engraved"),
    ("lm_head.weight", "it is the head, which is engraved"),
    ("base_layer", "it holds base weights, which are engraved"),
    (".bias", "it trains biases, which are engraved"),
)


def _pairs(path: Path, tensors: Mapping[str, Floats], orient: Orient) -> tuple[Pair, ...]:
    """Joins A and B of each module.

    Raises:
        UserError: a tensor is none of a LoRA branch, is not finite, or lacks its other half.
    """
    halves: dict[str, dict[str, tuple[str, Floats]]] = {}
    for name, tensor in tensors.items():
        for part, reason in _REFUSED:
            if part in name:
                raise UserError(f"tensor '{name}' cannot be used: {reason}", file=str(path))
        match = _TENSOR.match(name)
        if match is None:
            raise UserError(
                f"tensor '{name}' is neither lora_A nor lora_B of a module", file=str(path)
            )
        if not np.isfinite(tensor).all():
            raise UserError(
                f"tensor '{name}' has values that are not finite",
                file=str(path),
                hint="the training diverged, or the file is damaged",
            )
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise UserError(
                f"tensor '{name}' has shape {list(tensor.shape)}; A and B are matrices",
                file=str(path),
            )
        module = match["module"].removeprefix("base_model.model.").strip("/").replace("/", ".")
        both = halves.setdefault(module, {})
        if match["half"] in both:
            raise UserError(
                f"both '{both[match['half']][0]}' and '{name}' are lora_{match['half']} of one "
                "module",
                file=str(path),
            )
        both[match["half"]] = (name, tensor)
    if not halves:
        raise UserError("holds no lora_A and lora_B", file=str(path), hint=f"give {_FORMS}")
    found: list[Pair] = []
    for module in sorted(halves, key=_natural):
        both = halves[module]
        for here, other in (_HALVES, _HALVES[::-1]):
            if other not in both:
                raise UserError(
                    f"'{module}' has lora_{here} without lora_{other}",
                    file=str(path),
                    hint=_WHOLE,
                )
        found.append(Pair(module, *orient(path, module, both["A"][1], both["B"][1])))
    return tuple(found)


def _natural(name: str) -> list[tuple[int, str]]:
    """Order in which layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_olive(path: Path, module: str, a: Floats, b: Floats) -> Oriented:
    """A [in, r] and B [r, out], the scaling folded into B."""
    is_olive, is_peft = a.shape[1] == b.shape[0], a.shape[0] == b.shape[1]
    if is_peft and (not is_olive or a.shape[0] < a.shape[1]):
        raise UserError(
            f"'{module}' is stored as PEFT stores it (A {list(a.shape)}, B {list(b.shape)}), so "
            f"its scaling is in an {PEFT_CONFIG}, which is missing",
            file=str(path),
            hint=f"give the folder with {PEFT_CONFIG} and {PEFT_WEIGHTS}",
        )
    if not is_olive:
        raise UserError(_unequal_ranks(module, a, b), file=str(path))
    return np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)


def _unequal_ranks(module: str, a: Floats, b: Floats) -> str:
    return f"A {list(a.shape)} and B {list(b.shape)} of '{module}' have no common rank"


# --- PEFT ---------------------------------------------------------------------------------------


def _read_peft(folder: Path) -> AdapterFile:
    config_path, weights = folder / PEFT_CONFIG, folder / PEFT_WEIGHTS
    if not config_path.is_file():
        # PEFT writes adapters that are not called "default" to folders of their names.
        named = sorted(path.parent for path in folder.glob(f"*/{PEFT_CONFIG}"))
        raise UserError(
            f"this folder holds no {PEFT_CONFIG}",
            file=str(folder),
            hint=f"give {' or '.join(map(str, named))}" if named else f"give {_FORMS}",
        )
    try:
        config = json.loads(_bytes_of(config_path))
    except ValueError as error:
        raise UserError(f"is no JSON: {error}", file=str(config_path), hint=_WHOLE) from error
    if not isinstance(config, dict):
        raise UserError("is no JSON object", file=str(config_path), hint=_WHOLE)
    _check_config(config_path, config)
    if not weights.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise UserError(
            f"this folder holds no {PEFT_WEIGHTS}"
            + (", only a pickle, which could run code when it is read" if pickled else ""),
            file=str(folder),
            hint="save the adapter with safe_serialization=True",
        )
    tensors, metadata = read_safetensors(weights)
    scalings = _Scalings(config_path, config)
    pairs = _pairs(weights, tensors, scalings.oriented)
    _check_targets(config_path, config, pairs)
    base = config.get(BASE_KEY) or metadata.get(BASE_KEY)
    return AdapterFile(folder, "peft", pairs, None if base is None else str(base))


_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that subtract from the base weights, so that the adapter fits no other."""

_UNSUPPORTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("use_dora", bool, "DoRA rescales the base weights, which are engraved"),
    ("modules_to_save", bool, "whole modules are replaced, but the chip's are engraved"),
    ("bias", lambda value: value not in (None, "none"), "biases are trained, but engraved"),
    ("lora_bias", bool, "B has a bias, which the adapter units do not add"),
    ("trainable_token_indices", bool, "tokens of the engraved embedding table are trained"),
    ("layer_replication", bool, "layers are repeated, but the engraved model's are not"),
    ("alora_invocation_tokens", bool, "it is active after certain tokens only"),
    ("target_parameters", bool, "it adapts parameters that are no linear modules"),
    ("use_qalora", bool, "QA-LoRA pools the activations of a group"),
    ("use_bdlora", bool, "its matrices are block-diagonal"),
    ("kasa_config", bool, "KaSA cuts the base weights, which are engraved"),
    ("arrow_config", bool, "Arrow chooses among several adapters for each token"),
    ("monteclora_config", bool, "MonteCLoRA draws A anew"),
    (
        "init_lora_weights",
        lambda value: isinstance(value, str) and value.lower().startswith(_CHANGES_BASE),
        "this initialisation changes the base weights",
    ),
)


_PLAIN = (
    "use_rslora",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "runtime_config",
    "megatron_config",
)
"""What is read here, or says how a plain LoRA was initialised or trained."""


def _check_known(path: Path, config: Mapping[str, Any]) -> None:
    """Whether no unknown variant of LoRA is switched on: PEFT does it with such keys."""
    known = {*_PLAIN, *(key for key, _, _ in _UNSUPPORTED)}
    for key, value in config.items():
        if value and key not in known and (key.startswith("use_") or key.endswith("_config")):
            raise UserError(
                f"{key} is {json.dumps(value)}: this variant of LoRA is not known",
                file=str(path),
                hint="train a plain LoRA adapter",
            )


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(
            f"the adapter is of the kind {kind}",
            file=str(path),
            hint="LoRA adapters are supported, with or without rsLoRA",
        )
    for key, is_used, reason in _UNSUPPORTED:
        if is_used(config.get(key)):
            raise UserError(
                f"{key} is {json.dumps(config[key])}: {reason}",
                file=str(path),
                hint="train a plain LoRA adapter"
                if key != "init_lora_weights"
                else "convert the adapter to plain LoRA when saving it "
                "(path_initial_model_for_weight_conversion)",
            )
    _check_known(path, config)
    numbers: dict[str, Any] = {key: config.get(key) for key in ("r", "lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        given = config.get(pattern) or {}
        if not isinstance(given, dict):
            raise UserError(f"{pattern} is no JSON object", file=str(path))
        numbers |= {f"{pattern}['{key}']": value for key, value in given.items()}
    for key, value in numbers.items():
        is_rank = key.startswith("r")
        known = (int,) if is_rank else (int, float)
        if type(value) not in known or not math.isfinite(value) or (is_rank and value < 1):
            what = "no rank" if is_rank else "no number"
            raise UserError(f"{key} is {json.dumps(value)}, {what}", file=str(path))


@dataclass(frozen=True)
class _Scalings:
    """Ranks and scalings that a PEFT configuration states."""

    path: Path
    config: Mapping[str, Any]

    def oriented(self, path: Path, module: str, a: Floats, b: Floats) -> Oriented:
        """A [r, in] and B [out, r] times the scaling.

        PEFT's `fan_in_fan_out` speaks of the base's matrix alone: A and B are stored as linear
        modules in any case.
        """
        if a.shape[0] != b.shape[1]:
            raise UserError(_unequal_ranks(module, a, b), file=str(path))
        rank = self._of("rank_pattern", "r", module)
        if a.shape[0] != rank:
            raise UserError(
                f"'{module}' has rank {a.shape[0]}, the configuration says {rank}",
                file=str(path),
                hint=f"{PEFT_CONFIG} and {PEFT_WEIGHTS} are of different adapters, or several keys "
                "of rank_pattern match: PEFT sorts them when it saves, and takes the first",
            )
        alpha = self._of("alpha_pattern", "lora_alpha", module)
        scaling = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return a, (b.astype(np.float64) * scaling).astype(np.float32)

    def _of(self, pattern: str, key: str, module: str) -> float:
        """The first pattern that matches the end of a module's name, else the common value."""
        for name, value in (self.config.get(pattern) or {}).items():
            try:
                if re.match(rf"(.*\.)?({name})$", module):
                    return value
            except re.error as error:
                raise UserError(
                    f"{pattern} has '{name}', no regular expression: {error}", file=str(self.path)
                ) from error
        return self.config[key]


def _check_targets(path: Path, config: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
    """Whether every listed target module has matrices."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if not isinstance(targets, list) or not isinstance(excluded, list):
        return  # Which modules a regular expression is for, the base's names say.
    for target in targets:
        if any(f".{one}".endswith(f".{target}") or target.endswith(f".{one}") for one in excluded):
            continue
        if not any(p.module == target or p.module.endswith(f".{target}") for p in pairs):
            raise UserError(
                f"the target module '{target}' has no matrices in {PEFT_WEIGHTS}",
                file=str(path),
                hint=_WHOLE,
            )


# --- an adapter of another chip -----------------------------------------------------------------


def _read_stored(folder: Path) -> AdapterFile:
    try:
        content = json.loads(_bytes_of(folder / ADAPTER_DESCRIPTION))
        base = str(content[BASE_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "is no adapter of this version", file=str(folder / ADAPTER_DESCRIPTION), hint=_WHOLE
        ) from error
    path = folder / ADAPTER_FLOATS
    return AdapterFile(folder, "intaglio", _pairs(path, _onnx_tensors(path), _of_olive), base)


def tensors_of(pairs: Iterator[tuple[str, Floats, Floats]]) -> dict[str, Floats]:
    """Sites with A [r, in] and B [out, r] as the named tensors of an `.onnx_adapter` file."""
    found: dict[str, Floats] = {}
    for site, a, b in pairs:
        found[f"{site}.lora_A"] = np.ascontiguousarray(a.T)
        found[f"{site}.lora_B"] = np.ascontiguousarray(b.T)
    return found
