# SPDX-License-Identifier: Apache-2.0
"""What the tests of models in one file share."""

import gzip
import json

import numpy
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from support import CHANNELS, SIDE, SOURCE, UNET, WIDTH, run, run_ok
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPT = "a red apple on a blue background"
WIDEST = UNET["block_out_channels"][-1]


def picture(folder, model, *more):
    run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        model,
        "--prompt",
        PROMPT,
        "--num_inference_steps",
        3,
        "--device",
        "cpu",
        "--initial_latents",
        folder / "latents.safetensors",
        "--output",
        folder / "x.png",
        *more,
    )
    return numpy.asarray(Image.open(folder / "x.png"), dtype=float)


def latents_file(folder, channels=CHANNELS):
    latents = torch.randn(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def lora_file(path):
    torch.manual_seed(1)
    tensors = {}
    for name, width in [("attn1.to_v", WIDEST), ("attn2.to_v", WIDTH), ("attn2.to_out.0", WIDEST)]:
        layer = f"unet.mid_block.attentions.0.transformer_blocks.0.{name}.lora"
        tensors |= {f"{layer}.down.weight": torch.randn(2, width), f"{layer}.up.weight": torch.randn(WIDEST, 2)}
    save_file(tensors, path)


def close(title, one, other, most):
    error = abs(one - other).mean()
    print(f"{title}: mean absolute difference {error:.4f} of 255")
    assert error <= most, error


def there(pipe, latents, scheduler):
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler
    return numpy.round(pipe(PROMPT, num_inference_steps=3, latents=latents.clone(), output_type="np").images[0] * 255)


# Stable Diffusion 1.x's.
SCHEDULER = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)


def fails(expected, model, *more, status=1):
    done = run("text_to_image", "--pretrained_model_name_or_path", model, "--prompt", "x", "--output", "x.png", *more)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1, (done.returncode, done.stderr)
    assert expected in done.stderr, (expected, done.stderr)


def clip_tokenizer(folder):
    """transformers' tokenizer from the merges that come with us; its vocabulary is built here by CLIP's own rule."""
    merges = (
        gzip.decompress((SOURCE / "examples/stable_diffusion/assets/clip_tokenizer/clip_merges.txt.gz").read_bytes())
        .decode()
        .split("\n")[1:-1]
    )
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    words = characters + [c + "</w>" for c in characters] + [m.replace(" ", "") for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == len(set(words)) == 49408
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def small_model(folder):
    """A model with the fixed numbers of Stable Diffusion 1.x, but few channels."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=32,
        scaling_factor=0.18215,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    tokenizer = clip_tokenizer(folder / "clip")
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        scheduler=SCHEDULER,
    )
    pipe.save_pretrained(str(folder / "model"))
    return tokenizer
