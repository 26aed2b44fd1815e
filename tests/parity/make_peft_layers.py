# SPDX-License-Identifier: Apache-2.0
"""Writes data/peft_layers: an adapter of PEFT (0.21.2) over a model with every kind of layer that both sides adapt.

    python tests/parity/make_peft_layers.py

`adapter/` is what `save_pretrained` writes; `model.safetensors` holds the model's weights, inputs and outputs.
tests/library/peft_layers_test.cpp reads the adapter, and compares the names and values that it writes itself.
"""

import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

DATA = pathlib.Path(__file__).parent / "data/peft_layers"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 6, padding_idx=0)
        self.attn = nn.MultiheadAttention(6, 2)
        self.fc = nn.Linear(6, 5)
        self.conv1 = nn.Conv1d(5, 4, 3)
        self.conv2 = nn.Conv2d(1, 3, (2, 3))

    def forward(self, ids):
        x = self.emb(ids)  # (length, batch, 6)
        x, _ = self.attn(x, x, x, need_weights=True)
        x = self.conv1(self.fc(x).permute(1, 2, 0))
        return self.conv2(x.unsqueeze(1))


def main():
    shutil.rmtree(DATA, ignore_errors=True)
    torch.manual_seed(5)
    model = Model()
    weights = {f"weight.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    ids = torch.tensor([[1, 4], [2, 10], [0, 3], [7, 7], [9, 0]])
    base = model(ids)
    layers = ["emb", "attn", "fc", "conv1", "conv2"]
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=3, target_modules=layers))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.4)
        # Training leaves the padding's row at zero, where it starts.
        adapted.base_model.model.emb.lora_embedding_A["default"][:, 0] = 0
    adapted.eval()
    output = adapted(ids)
    assert (output - base).norm() > 0.2 * base.norm()
    adapted.save_pretrained(str(DATA / "adapter"))
    (DATA / "adapter/README.md").unlink()
    save_file({**weights, "ids": ids, "base": base.detach(), "output": output.detach()}, DATA / "model.safetensors")


main()
