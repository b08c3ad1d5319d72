"""What the recipes share whose ONNX onnxruntime-genai's builder writes in int4.

They are ``demo/train.py``, ``experts/train.py`` and ``states/train.py``: the rounding of the
builder, what it wants to find and leaves, and what onnxruntime makes of its model. All else:
``recipe.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recipe import Graph, nats_a_byte, report, say, torch_logits

if TYPE_CHECKING:
    import torch

BLOCK = 32
SHIPPED = ("model.onnx", "model.onnx.data", "genai_config.json")


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What the builder's default int4 makes of a matrix [..., N, K]; the gradient passes through.

    A block of 32 along K has one scale, such that the largest value is code -8 exactly.
    """
    import torch

    blocks = weight.detach().unflatten(-1, (-1, BLOCK))
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    values = (torch.clamp(torch.round(blocks / scale), -8, 7) * scale).flatten(-2)
    return weight + (values - weight).detach()


def stand_in_tokenizer(folder: Path) -> None:
    """A tokenizer beside the checkpoint: the builder insists on one. It is not shipped.

    Its end token is named, for transformers gives the tokenizer of a Qwen3.5 another one if not,
    beyond the vocabulary, and the builder writes that into its config.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{n:02x}>": n for n in range(256)}, unk_token="<00>"))
    special = {"unk_token": "<00>", "eos_token": "<00>", "pad_token": "<00>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def ship(built: Path, out: Path) -> None:
    """Keep the graph that the builder left, its data and its config."""
    (out / "model").mkdir(exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(built / name, out / "model" / name)
        say(f"export: {name}, {(built / name).stat().st_size} bytes")


def graph(model: Path, float_activations: bool) -> Graph:
    """The exported model in onnxruntime."""
    import onnx

    proto = onnx.load(model)
    if float_activations:
        for node in proto.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 0
    config = json.loads((model.parent / "genai_config.json").read_text())
    return Graph(proto, config["model"]["decoder"]["head_size"])


def judge_export(work: Path, out: Path, model: torch.nn.Module, text: bytes) -> None:
    """Nats a byte of a text, three ways, and samples; also in ``figures.json``.

    Args:
        work: gets the figures.
        out: has the exported model.
        model: the float one.
        text: to be judged on.
    """
    comes = graph(out / "model" / "model.onnx", float_activations=False)
    exact = graph(out / "model" / "model.onnx", float_activations=True)
    figures = {
        "torch, float": nats_a_byte(torch_logits(model), text),
        "onnxruntime, int4": nats_a_byte(comes.logits, text),
        "onnxruntime, int4, float activations": nats_a_byte(exact.logits, text),
    }
    report(
        work,
        figures,
        greedy=lambda prompt: comes.continued(prompt, 200),
        drawn=lambda prompt: comes.continued(prompt, 400, 0.7),
    )
