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

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intaglio.backend.output.output import ADAPTER_DESCRIPTION, ADAPTER_FLOATS, some_of
from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSON
from intaglio.runtime.text.patterns import Pattern, UnsupportedPattern, Work

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

_LARGEST_CONFIG = 16 << 20
_LARGEST = 4 << 30
"""Bytes of an adapter's matrices in float32; no chip has slots for as many."""
_RATIO = 64
"""How many times its size the contents of a compressed file may have; those of floats that were
trained have less than two."""
_SMALL = 64 << 20
"""Bytes that they may have in any case."""
_HEADER = 16 << 10
"""Bytes of an array's file in which its header must end."""


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
        layers: numbers of the layers that it was trained for, where the file states them.
        unscaled: modules whose scaling is 0.
        warnings: what else in it has no effect.
    """

    path: Path
    form: str
    pairs: tuple[Pair, ...]
    base: str | None = None
    layers: tuple[int, ...] | None = None
    unscaled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


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

    _check_readable(path)
    try:
        # Names and shapes come first: the file may be a whole model.
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            _check_entries(path, {name: one.get_shape() for name, one in entries.items()})
        tensors = {
            name: _tensor(path, name, one["dtype"], one["data"], one["shape"])
            for name, one in deserialize(_bytes_of(path))
        }
    except SafetensorError as error:
        raise UserError(
            f"is no whole safetensors file: {error}", file=str(path), hint=_WHOLE
        ) from error
    return tensors, metadata or {}


def _tensor(
    path: Path, name: str, kind: str, data: bytes | bytearray, shape: Sequence[int]
) -> Floats:
    # `safetensors.numpy` would do, but for BF16, which numpy has not.
    if kind not in _DTYPES:
        raise UserError(
            f"tensor '{name}' is {kind}; float16, bfloat16 and float32 are understood",
            file=str(path),
            hint="save the adapter in floating point",
        )
    stored = np.frombuffer(data, _DTYPES[kind]).reshape(shape)
    if kind == "BF16":
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return _narrowed(path, f"tensor '{name}'", stored)


def _narrowed(path: Path, what: str, values: np.ndarray) -> Floats:
    """Values as float32.

    Raises:
        UserError: finite ones are too large for it.
    """
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if np.isinf(found).any() and (np.isinf(found) & np.isfinite(values)).any():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise UserError(
            f"{what} has values up to {largest:.2g}, which float32 cannot hold",
            file=str(path),
            hint="the training diverged, or the file is damaged",
        )
    return found


def _check_entries(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Whether all tensors of a file are A or B of a module, by their names and shapes.

    Raises:
        UserError: one is not, or they are too large.
    """
    for name, shape in shapes.items():
        _half_of(path, name, shape)
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    if size > _LARGEST:
        raise UserError(
            f"its matrices take {size:,} bytes in float32, at most {_LARGEST:,} are read",
            file=str(path),
        )


def _half_of(path: Path, name: str, shape: Sequence[int]) -> tuple[str, str]:
    """The module that a tensor belongs to, and which half of its branch it is.

    Raises:
        UserError: it is none of a LoRA branch.
    """
    for part, reason in _REFUSED:
        if part in name:
            raise UserError(f"tensor '{name}' cannot be used: {reason}", file=str(path))
    match = _TENSOR.match(name)
    if match is None:
        raise UserError(
            f"tensor '{name}' is neither lora_A nor lora_B of a module",
            file=str(path),
            hint=_MLX_HINT if name.endswith(_MLX_TENSORS) else None,
        )
    if len(shape) != 2 or 0 in shape:
        raise UserError(
            f"tensor '{name}' has shape {list(shape)}; A and B are matrices", file=str(path)
        )
    module = match["module"].removeprefix("base_model.model.").strip("/").replace("/", ".")
    return module, match["half"]


def _check_readable(path: Path) -> None:
    # What libraries say of a file that they cannot open names a source line of theirs.
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _onnx_tensors(path: Path) -> dict[str, Floats]:
    import onnxruntime

    _check_readable(path)
    if path.stat().st_size > _LARGEST:
        raise UserError(f"is larger than {_LARGEST:,} bytes, which are read", file=str(path))
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
    _check_readable(path)
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        *(OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(f"is no whole .npz file: {error}", file=str(path), hint=_WHOLE) from error
    return {name: _float32(path, name, array) for name, array in arrays.items()}


def _check_npz(path: Path) -> None:
    """Checks names, types and sizes of a compressed file's arrays before they are unpacked.

    Raises:
        ValueError: an array's header is damaged, or its content has another size.
        UserError: an array cannot be used, or is far larger than the file.
    """
    shapes: dict[str, Sequence[int]] = {}
    with zipfile.ZipFile(path) as file:
        members = file.infolist()
        size, limit = path.stat().st_size, sum(one.file_size for one in members)
        if limit > max(_SMALL, _RATIO * size):
            raise UserError(
                f"{size:,} bytes unpack to {limit:,}, more than {_RATIO} times as many",
                file=str(path),
                hint="save the adapter with numpy.savez, uncompressed",
            )
        for one in members:
            name = one.filename.removesuffix(".npy")
            with file.open(one) as content:
                start = io.BytesIO(content.read(_HEADER))
            version = np.lib.format.read_magic(start)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(start)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(start)
            else:
                raise ValueError(f"array '{name}' is of version {version}")
            if dtype.kind != "f":
                _float32(path, name, np.empty(0, dtype))
            if start.tell() + math.prod(shape) * dtype.itemsize != one.file_size:
                raise ValueError(f"array '{name}' is not as long as its shape says")
            shapes[name] = shape
    _check_entries(path, shapes)


def _float32(path: Path, name: str, array: np.ndarray) -> Floats:
    if array.dtype.kind == "f":
        return _narrowed(path, f"tensor '{name}'", array)
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
        module, half = _half_of(path, name, tensor.shape)
        if not np.isfinite(tensor).all():
            raise UserError(
                f"tensor '{name}' has values that are not finite",
                file=str(path),
                hint="the training diverged, or the file is damaged",
            )
        both = halves.setdefault(module, {})
        if half in both:
            raise UserError(
                f"both '{both[half][0]}' and '{name}' are lora_{half} of one module",
                file=str(path),
            )
        both[half] = (name, tensor)
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
    config = _json_object(config_path)
    if "peft_type" not in config and _is_mlx(folder, config):
        raise UserError(
            "is the configuration of an MLX adapter, not of PEFT's",
            file=str(config_path),
            hint=_MLX_HINT,
        )
    _check_config(config_path, config)
    if not weights.is_file():
        raise _no_weights(folder)
    tensors, metadata = read_safetensors(weights)
    scalings = _Scalings(config_path, config)
    pairs = _pairs(weights, tensors, scalings.oriented)
    _check_targets(config_path, config, pairs)
    used, left_out = _used(weights, config, pairs)
    base = config.get(BASE_KEY) or metadata.get(BASE_KEY)
    return AdapterFile(
        folder,
        "peft",
        used,
        None if base is None else str(base),
        _layers(config.get("layers_to_transform")),
        tuple(name for name in scalings.unscaled if any(p.module == name for p in used)),
        (*scalings.warnings(pairs), *left_out),
    )


def _used(
    weights: Path, config: Mapping[str, JSON], pairs: Sequence[Pair]
) -> tuple[tuple[Pair, ...], list[str]]:
    """The pairs that PEFT would load, and a warning of the others.

    PEFT makes branches of the modules that the configuration chooses, and ignores what else is
    stored (`check_target_module_exists` of its tuners' utilities).

    Raises:
        UserError: none would be loaded.
    """
    layers = _layers(config.get("layers_to_transform"))
    given = config.get("layers_pattern") or []
    parents = [str(one) for one in (given if isinstance(given, list) else [given])]
    if layers is None or not all(re.fullmatch(r"\w+", one) for one in parents):
        return tuple(pairs), []
    places = [re.compile(rf".*\.{one}\.(\d+)\.") for one in parents or [r"[^.]*"]]
    # Targets that are whole names are meant whatever their layer.
    targets = config.get("target_modules")
    whole = targets if isinstance(targets, list) else []

    def is_used(module: str) -> bool:
        found = next((at for place in places if (at := place.match(module))), None)
        return module in whole or (found is not None and int(found[1]) in layers)

    used = tuple(p for p in pairs if is_used(p.module))
    others = [p.module for p in pairs if not is_used(p.module)]
    if not others:
        return used, []
    among = f", of {', '.join(parents)}" if parents else ""
    what = f"layers_to_transform is {_json(config['layers_to_transform'])}{among}"
    if not used:
        raise UserError(
            f"{what}, and no matrices are of these layers: {some_of(others)}",
            file=str(weights),
            hint=f"{PEFT_CONFIG} and {PEFT_WEIGHTS} are of different adapters",
        )
    noun = "module" if len(others) == 1 else "modules"
    warning = (
        f"{what}, so that the matrices of {len(others)} {noun} are left out, as PEFT does: "
        f"{some_of(others)}"
    )
    return used, [warning]


def _json_object(path: Path) -> dict[str, JSON]:
    _check_readable(path)
    if path.stat().st_size > _LARGEST_CONFIG:
        raise UserError(f"is larger than {_LARGEST_CONFIG >> 20} MiB", file=str(path))
    try:
        content: JSON = json.loads(_bytes_of(path))
    except RecursionError:
        raise UserError("is nested too deeply", file=str(path), hint=_WHOLE) from None
    except ValueError as error:
        raise UserError(f"is no JSON: {error}", file=str(path), hint=_WHOLE) from error
    if not isinstance(content, dict):
        raise UserError("is no JSON object", file=str(path), hint=_WHOLE)
    return content


_MLX_TENSORS = (".lora_a", ".lora_b")
_MLX_HINT = (
    "save it as PEFT does: lora_A and lora_B are MLX's lora_a and lora_b transposed, and "
    "lora_alpha is MLX's scale times its rank"
)


def _is_mlx(folder: Path, config: Mapping[str, JSON]) -> bool:
    keys = ("lora_parameters", "fine_tune_type", "num_layers", "lora_layers")
    return (folder / "adapters.safetensors").is_file() or any(key in config for key in keys)


def _no_weights(folder: Path) -> UserError:
    what, hint = f"this folder holds no {PEFT_WEIGHTS}", "save the adapter again, with its weights"
    if shards := sorted(path.name for path in folder.glob("adapter_model-*-of-*.safetensors")):
        what += f", but parts of it: {some_of(shards)}"
        hint = (
            f"join them: {PEFT_WEIGHTS} with the tensors of all parts (safetensors.numpy.load_file "
            "of each, save_file of all)"
        )
    elif (folder / "adapter_model.bin").is_file():
        what += ", only a pickle, which could run code when it is read"
        hint = "save the adapter with safe_serialization=True"
    return UserError(what, file=str(folder), hint=hint)


def _layers(given: JSON) -> tuple[int, ...] | None:
    """The layers that `layers_to_transform` lists; None where it does not."""
    listed = given if isinstance(given, list) else [given]
    numbers = tuple(one for one in listed if type(one) is int)
    return numbers if numbers and len(numbers) == len(listed) else None


_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Initialisations that subtract from the base weights, so that the adapter fits no other."""

_UNSUPPORTED: tuple[tuple[str, Callable[[JSON], bool], str], ...] = (
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


def _json(value: JSON) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check_known(path: Path, config: Mapping[str, JSON]) -> None:
    """Whether no unknown variant of LoRA is switched on: PEFT does it with such keys."""
    known = {*_PLAIN, *(key for key, _, _ in _UNSUPPORTED)}
    for key, value in config.items():
        if value and key not in known and (key.startswith("use_") or key.endswith("_config")):
            raise UserError(
                f"{key} is {_json(value)}: this variant of LoRA is not known",
                file=str(path),
                hint="train a plain LoRA adapter",
            )


def _check_config(path: Path, config: Mapping[str, JSON]) -> None:
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
                f"{key} is {_json(config[key])}: {reason}",
                file=str(path),
                hint="train a plain LoRA adapter"
                if key != "init_lora_weights"
                else "convert the adapter to plain LoRA when saving it "
                "(path_initial_model_for_weight_conversion)",
            )
    _check_known(path, config)
    numbers: dict[str, JSON] = {key: config.get(key) for key in ("r", "lora_alpha")}
    for pattern in ("rank_pattern", "alpha_pattern"):
        given = config.get(pattern) or {}
        if not isinstance(given, dict):
            raise UserError(f"{pattern} is no JSON object", file=str(path))
        numbers |= {f"{pattern}['{key}']": value for key, value in given.items()}
    for key, value in numbers.items():
        is_rank = key.startswith("r")
        # Beyond these a quotient would be no float.
        if (
            isinstance(value, bool)
            or not isinstance(value, int if is_rank else int | float)
            or not abs(value) < 1e9
            or (is_rank and value < 1)
        ):
            what = "no rank" if is_rank else "no number of a usual size"
            raise UserError(f"{key} is {_json(value)}, {what}", file=str(path))


def _number(value: JSON) -> float:
    """One that `_check_config` saw."""
    assert isinstance(value, int | float)
    return value


@dataclass(frozen=True)
class _Scalings:
    """Ranks and scalings that a PEFT configuration states, and what they come to."""

    path: Path
    config: Mapping[str, JSON]
    work: Work = field(default_factory=Work)
    compiled: dict[str, Pattern] = field(default_factory=dict)
    unscaled: list[str] = field(default_factory=list)
    """Modules whose scaling is 0."""

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
        if scaling == 0:
            self.unscaled.append(module)
        what = f"lora_B of '{module}' times its scaling of {scaling:g} (alpha {alpha:g}, r {rank})"
        return a, _narrowed(path, what, b.astype(np.float64) * scaling)

    def _of(self, pattern: str, key: str, module: str) -> float:
        """The first pattern that matches the end of a module's name, else the common value."""
        for name, value in self._patterns(pattern).items():
            if self._matches(pattern, name, module):
                return value
        return _number(self.config[key])

    def _patterns(self, pattern: str) -> Mapping[str, float]:
        given = self.config.get(pattern)
        return {k: _number(one) for k, one in given.items()} if isinstance(given, dict) else {}

    def _matches(self, pattern: str, name: str, module: str) -> bool:
        try:
            if name not in self.compiled:
                # As PEFT has it: what stands before ends with a dot.
                self.compiled[name] = Pattern(rf"(.*\.)?({name})$", self.work)
            return self.compiled[name].matches_start(module)
        except UnsupportedPattern as error:
            shown = name if len(name) <= 80 else f"{name[:80]}..."
            raise UserError(
                f"{pattern} has '{shown}', which cannot be used as a pattern: {error}",
                file=str(self.path),
                hint="name the modules, as PEFT does when it saves",
            ) from error

    def warnings(self, pairs: Sequence[Pair]) -> Iterator[str]:
        """What in the configuration has no effect."""
        for pattern in ("rank_pattern", "alpha_pattern"):
            dead = [
                f"'{name}'"
                for name in self._patterns(pattern)
                if not any(self._matches(pattern, name, p.module) for p in pairs)
            ]
            if dead:
                matches = "matches" if len(dead) == 1 else "match"
                yield (
                    f"{pattern} has {some_of(dead)}, which {matches} no module of the adapter: a "
                    "pattern is for the end of a name, from its beginning or a dot on"
                )


def _check_targets(path: Path, config: Mapping[str, JSON], pairs: Sequence[Pair]) -> None:
    """Whether every listed target module has matrices."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if not isinstance(targets, list) or not isinstance(excluded, list):
        return  # Which modules a regular expression is for, the base's names say.
    for target in map(str, targets):
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
    content = _json_object(folder / ADAPTER_DESCRIPTION)
    if BASE_KEY not in content:
        raise UserError(
            "is no adapter of this version", file=str(folder / ADAPTER_DESCRIPTION), hint=_WHOLE
        )
    base = str(content[BASE_KEY])
    path = folder / ADAPTER_FLOATS
    return AdapterFile(folder, "intaglio", _pairs(path, _onnx_tensors(path), _of_olive), base)


def tensors_of(pairs: Iterator[tuple[str, Floats, Floats]]) -> dict[str, Floats]:
    """Sites with A [r, in] and B [out, r] as the named tensors of an `.onnx_adapter` file."""
    found: dict[str, Floats] = {}
    for site, a, b in pairs:
        found[f"{site}.lora_A"] = np.ascontiguousarray(a.T)
        found[f"{site}.lora_B"] = np.ascontiguousarray(b.T)
    return found
