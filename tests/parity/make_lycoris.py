# SPDX-License-Identifier: Apache-2.0
"""Writes data/lycoris: adapters of LyCORIS (lycoris-lora 4.1.3) and PEFT (0.21.2), and the weights that they make.

<case>.safetensors, or the folder <case> of PEFT, is what a user would have; expected.safetensors holds the weights
"base.<layer>" and "<case>.<layer>" with the adapter at strength 1, as its own forward pass shows them. The files sgm_*
are of SDXL in the names of sd-scripts, whose UNet keeps the original blocks; with the argument sgm they alone are written.
"""

import copy
import pathlib
import shutil
import sys

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

DATA = pathlib.Path(__file__).parent / "data/lycoris"
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
LAYERS = {
    LINEAR: nn.Linear(24, 16, bias=False),
    CONV: nn.Conv2d(6, 16, 3, bias=False),
    POINT: nn.Conv2d(12, 16, 1, bias=False),
}


def weight_of(layer, base):
    """The weight that a layer computes with, from its outputs for every unit input."""
    if isinstance(base, nn.Linear):
        return layer(torch.eye(base.in_features)).T
    kernel = base.kernel_size
    size = base.in_channels * kernel[0] * kernel[1]
    return layer(torch.eye(size).view(size, base.in_channels, *kernel)).view(size, -1).T.reshape(base.weight.shape)


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, parameter in module.named_parameters():
        if "dora_scale" in name or "magnitude" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)


LYCORIS = {
    "locon": (LoConModule, dict(lora_dim=3, alpha=1.5)),
    "locon_tucker": (LoConModule, dict(lora_dim=3, alpha=1.5, use_tucker=True)),
    "locon_dora": (LoConModule, dict(lora_dim=3, alpha=1.5, weight_decompose=True)),
    "locon_dora_inputs": (LoConModule, dict(lora_dim=3, alpha=1.5, weight_decompose=True, wd_on_out=False)),
    "locon_rslora": (LoConModule, dict(lora_dim=4, alpha=1.5, rs_lora=True)),
    "loha": (LohaModule, dict(lora_dim=2, alpha=1)),
    "loha_wide": (LohaModule, dict(lora_dim=5, alpha=2)),
    "loha_tucker": (LohaModule, dict(lora_dim=3, alpha=1, use_tucker=True)),
    "loha_dora": (LohaModule, dict(lora_dim=3, alpha=1, weight_decompose=True)),
    "loha_dora_inputs": (LohaModule, dict(lora_dim=3, alpha=1, weight_decompose=True, wd_on_out=False)),
    "lokr": (LokrModule, dict(lora_dim=1, alpha=0.5)),
    "lokr_full": (LokrModule, dict(lora_dim=100, alpha=7)),
    "lokr_both": (LokrModule, dict(lora_dim=1, alpha=0.5, decompose_both=True)),
    "lokr_factor": (LokrModule, dict(lora_dim=2, alpha=3, factor=2)),
    "lokr_tucker": (LokrModule, dict(lora_dim=1, alpha=0.5, factor=2, use_tucker=True)),
    "lokr_dora": (LokrModule, dict(lora_dim=1, alpha=0.5, weight_decompose=True)),
}
PEFT = {
    "peft_dora": LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=list(LAYERS)),
    "peft_loha": LoHaConfig(r=3, alpha=6, target_modules=list(LAYERS), use_effective_conv2d=True),
    "peft_loha_flat": LoHaConfig(r=3, alpha=6, target_modules=list(LAYERS)),
    "peft_lokr": LoKrConfig(r=1, alpha=2, target_modules=list(LAYERS), rank_pattern={"to_q": 2}),
    "peft_lokr_full": LoKrConfig(r=50, alpha=20, target_modules=list(LAYERS)),
    "peft_lokr_tucker": LoKrConfig(
        r=1, alpha=2, target_modules=list(LAYERS), use_effective_conv2d=True, decompose_both=True, decompose_factor=2
    ),
}


# sd-scripts' names, and what the layers are to diffusers.
SGM = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        nn.Linear(24, 16, bias=False),
    ),
    "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj": (
        "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        nn.Linear(16, 24, bias=False),
    ),
    "lora_unet_output_blocks_2_1_proj_in": ("unet.up_blocks.0.attentions.2.proj_in", nn.Linear(12, 12, bias=False)),
    "lora_unet_output_blocks_5_2_conv": ("unet.up_blocks.1.upsamplers.0.conv", nn.Conv2d(6, 16, 3, bias=False)),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        nn.Linear(12, 16, bias=False),
    ),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": (
        "text_encoder_2.text_model.encoder.layers.1.mlp.fc1",
        nn.Linear(20, 16, bias=False),
    ),
}


@torch.no_grad()
def make_sgm():
    torch.manual_seed(2)
    expected = {}
    for case in ["locon", "loha", "lokr"]:
        kind, options = LYCORIS[case]
        tensors = {}
        for flat, (name, base) in SGM.items():
            if case == "locon":
                nn.init.normal_(base.weight, std=0.5)
                expected[f"base.{name}"] = base.weight.clone()
            layer = copy.deepcopy(base)
            module = kind(flat, layer, 1.0, **options)
            randomise(module)
            module.apply_to()
            expected[f"{case}.{name}"] = weight_of(layer, base).contiguous()
            tensors |= {f"{flat}.{key}": value.detach().clone() for key, value in module.custom_state_dict().items()}
        save_file(tensors, DATA / f"sgm_{case}.safetensors")
    save_file({name: value.detach().clone() for name, value in expected.items()}, DATA / "sgm_expected.safetensors")


def tree():
    """A model that has the layers under their names."""
    root = nn.Module()
    for name, layer in LAYERS.items():
        parent, parts = root, name.split(".")
        for part in parts[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(parts[-1], copy.deepcopy(layer))
    root.forward = lambda x: x
    return root


@torch.no_grad()
def main():
    torch.manual_seed(1)
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    for layer in LAYERS.values():
        nn.init.normal_(layer.weight, std=0.5)
    expected = {f"base.{name}": layer.weight.clone() for name, layer in LAYERS.items()}
    for case, (kind, options) in LYCORIS.items():
        tensors = {}
        for name, base in LAYERS.items():
            layer = copy.deepcopy(base)
            flat = "lora_unet_" + name.replace(".", "_")
            module = kind(flat, layer, 1.0, **options)
            randomise(module)
            module.apply_to()
            expected[f"{case}.{name}"] = weight_of(layer, base).contiguous()
            tensors |= {f"{flat}.{key}": value.detach().clone() for key, value in module.custom_state_dict().items()}
        save_file(tensors, DATA / f"{case}.safetensors")
    for case, config in PEFT.items():
        model = get_peft_model(tree(), config)
        randomise_peft = [p for n, p in model.named_parameters() if p.requires_grad]
        for parameter in randomise_peft:
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(DATA / case))
        (DATA / case / "README.md").unlink(missing_ok=True)
        for name, base in LAYERS.items():
            expected[f"{case}.{name}"] = weight_of(model.base_model.model.get_submodule(name), base).contiguous()
    save_file({name: value.detach().clone() for name, value in expected.items()}, DATA / "expected.safetensors")


if sys.argv[1:] != ["sgm"]:
    main()
make_sgm()
