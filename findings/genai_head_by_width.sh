#!/usr/bin/env bash
# onnxruntime-genai 0.18.0, model builder: every linear layer with as many outputs as the vocabulary
# has entries is taken for the head. A Llama whose hidden size is its vocabulary (of bytes: 256), or
# whose keys are that wide, comes out as another model, without a word: its logits are made by a
# projection of the last layer, and that layer's network and the final norm are left out. So are
# they with the queries of a Qwen3.5, which are packed with their gates.
# Largest difference of logits from transformers' (vocabulary of 64, fp32, CPU). Output seen:
#   hidden 64: 'Reading LM head' 4 times, error 5.6
#   hidden 128, keys and values of 64: 'Reading LM head' 3 times, error 4.5
#   hidden 96: 'Reading LM head' 1 times, error 2.9e-06
# Exit code 1 when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime-genai==0.18.0 onnxruntime==1.32.0 onnx==1.23.2 \
  onnx-ir==1.1.0 torch==2.13.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import subprocess
import sys

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 64


def built(hidden):
    """How many heads the builder reads, and how far its model is from transformers'."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    source, out = f"checkpoint{hidden}", f"built{hidden}"
    model.save_pretrained(source)
    words = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(source)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out]
    command += ["-c", "cache", "-p", "fp32", "-e", "cpu", "--extra_options", "hf_token=false"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    session = onnxruntime.InferenceSession(
        f"{out}/model.onnx", providers=["CPUExecutionProvider"]
    )
    ids = np.array([[3, 5, 7]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for entry in session.get_inputs():
        if entry.name.startswith("past"):
            feeds[entry.name] = np.zeros((1, 1, 0, hidden // 2), np.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)).logits.numpy()
    error = float(np.abs(session.run(["logits"], feeds)[0] - expected).max())
    return said.count("Reading LM head"), error


wide, keys, right = built(64), built(128), built(96)
for what, (heads, error) in (
    ("hidden 64", wide),
    ("hidden 128, keys and values of 64", keys),
    ("hidden 96", right),
):
    print(f"{what}: 'Reading LM head' {heads} times, error {error:.2g}")
same = wide[0] == 4 and keys[0] == 3 and right[0] == 1
same = same and wide[1] > 1 and keys[1] > 1 and right[1] < 1e-4
sys.exit(0 if same else "another behaviour than stated")
PYTHON
cd "$folder"
venv/bin/python show.py
