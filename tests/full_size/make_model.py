# SPDX-License-Identifier: Apache-2.0
"""Makes a model of Stable Diffusion 1.5's full size with random weights (fp32, about 4.3 GB).

Usage: make_model.py <output folder>. Needs torch 2.11.0, diffusers 0.42.1, transformers 5.23.0.
Only the sizes are the published ones: the pictures are noise. The tokenizer is the bundled one, whose ids
all lie inside the published vocabulary.
"""

import pathlib
import shutil
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

BUNDLED = pathlib.Path(__file__).resolve().parents[2] / "examples/stable_diffusion/assets/base"


def main(output):
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).save_pretrained(output / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    ).save_pretrained(output / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
        )
    ).save_pretrained(output / "text_encoder")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(output / "scheduler")
    for name in ["tokenizer", "model_index.json"]:
        source = BUNDLED / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, output / name, **({"dirs_exist_ok": True} if source.is_dir() else {}))
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e9:.2f} GB")


main(pathlib.Path(sys.argv[1]))
