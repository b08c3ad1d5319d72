"""Opening files: what is broken, missing, or leads out of the folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from intaglio.dialects.errors import UserError
from intaglio.lowering.onnx.graph.external_data import companion_file
from intaglio.lowering.onnx.graph.model_file import load
from intaglio.lowering.onnx.importer import import_model


def external(decoder, location: str = "weights.bin") -> Path:
    decoder.node("Relu", ["x"], ["y"])
    return decoder.save(save_as_external_data=True, location=location, size_threshold=0)


def relocated(path: Path, **entries: str) -> Path:
    """Changes the external data entries of the table."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key in entries:
                entry.value = entries[entry.key]
    path.write_bytes(model.SerializeToString())
    return path


def message(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        import_model(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_external_data_is_found_and_mapped(decoder):
    path = external(decoder)
    graph = load(path)
    assert [file.name for file in graph.external_files] == ["weights.bin"]
    assert graph.initializers["table"].stored().shape == (11, 16)


def test_missing_file(tmp_path):
    assert "no such file" in message(tmp_path / "nothing.onnx")


def test_folder(decoder):
    path = external(decoder)
    text = message(path.parent)
    assert "folder" in text and "model.onnx" in text


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\0" * 64, os.urandom(4096)])
def test_garbage(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "help:" in message(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated(decoder, share):
    decoder.node("Relu", ["x"], ["y"])
    path = decoder.save()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message(path)


def test_inline_tensor_that_is_too_short(decoder):
    decoder.node("Relu", ["x"], ["y"])
    decoder.constants[0].raw_data = decoder.constants[0].raw_data[:-4]
    message(decoder.save())


def test_missing_external_file(decoder):
    path = external(decoder)
    (path.parent / "weights.bin").unlink()
    text = message(path)
    assert "'table'" in text and "does not exist" in text and "beside model.onnx" in text


def test_short_external_file(decoder):
    path = external(decoder)
    data = (path.parent / "weights.bin").read_bytes()
    (path.parent / "weights.bin").write_bytes(data[:-1])
    text = message(path)
    assert "'table'" in text and "which has only 703" in text


def test_entry_that_is_too_short(decoder):
    text = message(relocated(external(decoder), length="100"))
    assert "needs 704 bytes" in text and "100 bytes" in text


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/etc/passwd", "absolute"),
        ("../weights.bin", "out of the folder"),
        ("a/../../weights.bin", "out of the folder"),
        ("C:\\weights.bin", "absolute"),
        ("..\\weights.bin", "out of the folder"),
    ],
)
def test_location_outside(decoder, location, words):
    path = relocated(external(decoder), location=location)
    text = message(path)
    assert words in text and "'table'" in text and "help:" in text


def test_link_out_of_the_folder(decoder, tmp_path_factory):
    path = external(decoder)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "weights.bin"
    (path.parent / "weights.bin").rename(elsewhere)
    (path.parent / "weights.bin").symlink_to(elsewhere)
    for allowed in (False, True):
        assert "leaves the model's folder" in message(path, allow_links=allowed)


def test_link_of_a_folder(decoder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    decoder.folder.joinpath("data").mkdir()
    path = external(decoder, "data/weights.bin")
    (path.parent / "data").rename(elsewhere / "data")
    (path.parent / "data").symlink_to(elsewhere / "data")
    assert "leaves the model's folder" in message(path)


def test_link_and_hard_link_inside_the_folder(decoder):
    path = external(decoder)
    os.link(path.parent / "weights.bin", path.parent / "hard.bin")
    (path.parent / "soft.bin").symlink_to("weights.bin")
    for name in ("hard.bin", "soft.bin"):
        model = import_model(relocated(path, location=name))
        assert np.isfinite(model.parameters["onnx::table"].values(0, 11)).all()


def test_model_hub_cache(decoder, tmp_path):
    path = external(decoder)
    blobs = tmp_path / "repo" / "blobs"
    snapshot = tmp_path / "repo" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, name in enumerate(("model.onnx", "weights.bin")):
        (path.parent / name).rename(blobs / f"{i}")
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    text = message(snapshot / "model.onnx")
    assert "model hub" in text and "--allow-links" in text
    model = import_model(snapshot / "model.onnx", allow_links=True)
    assert model.parameters["onnx::table"].values(0, 1).shape == (1, 16)


@pytest.mark.parametrize("name", ["tokenizer.json", "genai_config.json", "config.json"])
def test_files_beside_the_model_obey_the_rule_of_links(decoder, tmp_path_factory, name):
    path = decoder.save()
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("{}")
    assert companion_file(path, name, False) is None
    (path.parent / name).symlink_to(secret)
    for allowed in (False, True):
        with pytest.raises(UserError, match=f"its '{name}' is taken with it.*leaves the model's"):
            companion_file(path, name, allowed)
    (path.parent / name).unlink()
    (path.parent / "other").write_text("{}")
    (path.parent / name).symlink_to("other")
    assert companion_file(path, name, False) == path.parent / name


def test_files_beside_the_model_in_a_hub_cache(decoder, tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "0").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0")
    model = snapshot / "model.onnx"
    with pytest.raises(UserError, match="a link into a model hub's cache"):
        companion_file(model, "tokenizer.json", False)
    assert companion_file(model, "tokenizer.json", True) is not None


def test_undefined_input(decoder):
    decoder.node("Relu", ["never"], ["y"], name="relu")
    text = message(decoder.save())
    assert "node 'relu' (Relu)" in text and "'never'" in text


def test_a_missing_file_is_said_once(model, tmp_path):
    copy = tmp_path / "model.onnx"
    copy.write_bytes(model("llama").read_bytes())
    with pytest.raises(UserError) as caught:
        load(copy)
    assert str(caught.value).count("which does not exist") == 1


@pytest.mark.parametrize(
    ("dims", "words"),
    [([-1, 4], r"has the shape \[-1, 4\]"), ([1 << 40, 1 << 40], "needs bytes 0 to")],
)
def test_impossible_shapes(model, tmp_path, dims, words):
    source = model("llama")
    proto = onnx.load(source, load_external_data=False)
    tensor = next(one for one in proto.graph.initializer if one.external_data)
    for entry in tensor.external_data:
        if entry.key == "length":
            tensor.external_data.remove(entry)
    tensor.dims[:] = dims
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes((source.parent / "model.onnx.data").read_bytes())
    with pytest.raises(UserError, match=words):
        load(tmp_path / "model.onnx")
