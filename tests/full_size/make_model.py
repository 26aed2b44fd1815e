# SPDX-License-Identifier: Apache-2.0
"""Makes a model of Stable Diffusion 1.5's full size with random weights (fp32, about 4.3 GB), or of SDXL's (bf16, 7 GB).

Usage: make_model.py <output folder> [sdxl]. Needs torch 2.11.0, diffusers 0.42.1, transformers 5.23.0.
Only the sizes are the published ones: the pictures are noise. The tokenizer is that of the tests, whose ids all lie
inside the published vocabulary, and which cuts captions at the published 77 tokens.
"""

import gc
import json
import pathlib
import shutil
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUNDLED, TOKENIZER = ROOT / "examples/stable_diffusion/assets/base", ROOT / "tests/parity/data/tokenizer_demo"


def autoencoder(**more):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        **more,
    )


def save_large(make, folder):
    """A model in bf16 that is never in memory in a wider type. Small values: nothing may overflow."""
    with torch.device("meta"):
        model = make().to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.5 * parameter[0].numel() ** -0.5)
        else:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for buffer in model.buffers():
        buffer.copy_(torch.arange(buffer.numel()).view(buffer.shape))  # positions
    model.save_pretrained(folder)
    del model
    gc.collect()


def make_sdxl(output):
    down, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    save_large(
        lambda: UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=(down, cross, cross),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        output / "unet",
    )
    sizes = dict(projection_dim=768, hidden_size=768, intermediate_size=3072)
    first = CLIPTextConfig(num_hidden_layers=12, num_attention_heads=12, **sizes)
    save_large(lambda: CLIPTextModel(first), output / "text_encoder")
    sizes = dict(projection_dim=1280, hidden_size=1280, intermediate_size=5120, hidden_act="gelu")
    second = CLIPTextConfig(num_hidden_layers=32, num_attention_heads=20, **sizes)
    save_large(lambda: CLIPTextModelWithProjection(second), output / "text_encoder_2")
    save_large(lambda: autoencoder(sample_size=1024, scaling_factor=0.13025), output / "vae")
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    ).save_pretrained(output / "scheduler")
    for name in ["tokenizer", "tokenizer_2"]:
        shutil.copytree(TOKENIZER, output / name, dirs_exist_ok=True)
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    for part, library, kind in [
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("vae", "diffusers", "AutoencoderKL"),
        ("scheduler", "diffusers", "EulerDiscreteScheduler"),
        ("text_encoder", "transformers", "CLIPTextModel"),
        ("text_encoder_2", "transformers", "CLIPTextModelWithProjection"),
        ("tokenizer", "transformers", "CLIPTokenizer"),
        ("tokenizer_2", "transformers", "CLIPTokenizer"),
    ]:
        index[part] = [library, kind]
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_sd15(output):
    UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).save_pretrained(output / "unet")
    autoencoder(sample_size=512, scaling_factor=0.18215).save_pretrained(output / "vae")
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
    shutil.copytree(TOKENIZER, output / "tokenizer", dirs_exist_ok=True)
    shutil.copyfile(BUNDLED / "model_index.json", output / "model_index.json")


def main(output, make):
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    make(output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {size / 1e9:.2f} GB")


main(pathlib.Path(sys.argv[1]), make_sdxl if "sdxl" in sys.argv[2:] else make_sd15)
