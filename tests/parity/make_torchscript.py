# SPDX-License-Identifier: Apache-2.0
"""Writes data/torchscript: a small model as TorchScript exports, scripted.pt and traced.pt, two LoRAs of PEFT (0.21.2) for
it, the folders one and two, and expected.safetensors with input ids, and the outputs of the Python model: without an
adapter ("base"), with each ("one", "two"), and with a batch whose rows have one, two and none ("mixed").
"""

import copy
import pathlib
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

DATA = pathlib.Path(__file__).parent / "data/torchscript"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.q_proj = nn.Linear(12, 8)
        self.k_proj = nn.Linear(12, 8, bias=False)
        self.conv = nn.Conv1d(12, 10, 3, padding=1)
        self.head = nn.Linear(10, 6)

    def forward(self, ids):
        x = self.embedding(ids)
        x = torch.softmax(self.q_proj(x).matmul(self.k_proj(x).transpose(1, 2)), -1).matmul(x)
        return self.head(torch.tanh(self.conv(x.transpose(1, 2))).transpose(1, 2))


CONFIGS = {
    "one": LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "head", "conv"]),
    "two": LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "k_proj"]),
}


@torch.no_grad()
def main():
    torch.manual_seed(1)
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    net = Net().eval()
    ids = torch.randint(20, (3, 7))
    torch.jit.script(net).save(str(DATA / "scripted.pt"))
    torch.jit.trace(net, ids).save(str(DATA / "traced.pt"))
    expected = {"ids": ids, "base": net(ids)}
    model = None
    for name, config in CONFIGS.items():
        if model is None:
            model = get_peft_model(copy.deepcopy(net), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    model.eval()
    for name in CONFIGS:
        model.set_adapter(name)
        expected[name] = model(ids)
    expected["mixed"] = model(ids, adapter_names=["one", "two", "__base__"])
    model.save_pretrained(DATA)
    for name in CONFIGS:
        (DATA / name / "README.md").unlink(missing_ok=True)
    (DATA / "README.md").unlink(missing_ok=True)
    save_file({key: value.contiguous() for key, value in expected.items()}, DATA / "expected.safetensors")


if __name__ == "__main__":
    main()
