# SPDX-License-Identifier: Apache-2.0
"""SDXL and Stable Diffusion 2.x in one file in the original layout: ours load in diffusers, files without any
configuration load here, and both draw the same."""

import json
import pathlib

import numpy
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from single_file_support import PROMPT, clip_tokenizer, close
from support import SOURCE, main, run_ok, scratch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SMALL = SOURCE / "tests/parity/data/pipeline_xl"
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def latents_file(folder, side):
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, folder / "latents.safetensors")
    return latents


def picture(folder, model, *more):
    run_ok(
        "text_to_image",
        "--pretrained_model_name_or_path",
        model,
        *["--prompt", PROMPT, "--num_inference_steps", 3, "--guidance_scale", 5, "--device", "cpu"],
        *["--initial_latents", folder / "latents.safetensors", "--output", folder / "x.png"],
        *more,
    )
    return numpy.asarray(Image.open(folder / "x.png"), dtype=float)


def merged(folder, model, name="one/model.safetensors"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    run_ok("text_to_image", "--pretrained_model_name_or_path", model, "--device", "cpu", "--merge_to", path)
    return path


def there(pipe, latents):
    pipe.set_progress_bar_config(disable=True)
    side = 2 * latents.shape[-1]
    settings = dict(num_inference_steps=3, guidance_scale=5.0, height=side, width=side, output_type="np")
    return numpy.round(pipe(PROMPT, latents=latents.clone(), **settings).images[0] * 255)


def text_config(**more):
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=1,
        bos_token_id=49406,
        eos_token_id=49407,
        **more,
    )


def autoencoder(scaling):
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=32,
        scaling_factor=scaling,
    )


def bang_tokenizer(folder):
    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "clip"), model_max_length=77, pad_token="!")
    tokenizer.save_pretrained(str(folder / "clip_2"))
    return tokenizer


def small_sdxl(folder, **scheduler):
    """A model with the fixed numbers of SDXL, but few channels."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[1, 2, 2],
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=32 + 6 * 256,
    )
    pipe = StableDiffusionXLPipeline(
        tokenizer=clip_tokenizer(folder / "clip"),
        tokenizer_2=bang_tokenizer(folder),
        text_encoder=CLIPTextModel(text_config(num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(
            text_config(num_hidden_layers=3, hidden_act="gelu", projection_dim=32)
        ),
        unet=unet,
        vae=autoencoder(0.13025),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading", **scheduler),
        add_watermarker=False,
    )
    pipe.save_pretrained(str(folder / "model"))
    return pipe


def test_a_file_of_sdxl_draws_as_its_folder_here_and_in_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder, 8)
        expected = picture(folder, SMALL)
        file = merged(folder, SMALL)
        close("file alone", picture(folder, file), expected, 0)
        again = merged(folder, file, "again.safetensors")
        assert again.read_bytes() == file.read_bytes()
        tensors = load_file(file)
        second = load_file(SMALL / "text_encoder_2/model.safetensors")
        start = "text_model.encoder.layers.1.self_attn."
        fused = torch.cat([second[f"{start}{p}_proj.weight"] for p in "qkv"]).float()
        prefix = "conditioner.embedders.1.model."
        assert torch.equal(tensors[prefix + "transformer.resblocks.1.attn.in_proj_weight"], fused)
        assert torch.equal(tensors[prefix + "text_projection"], second["text_projection.weight"].float().t())
        for name in [
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
            "model.diffusion_model.label_emb.0.0.weight",
            "model.diffusion_model.output_blocks.3.2.conv.weight",
            "first_stage_model.decoder.mid.attn_1.q.weight",
        ]:
            assert name in tensors, name
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(file), config=str(SMALL), local_files_only=True, torch_dtype=torch.float32, add_watermarker=False
        )
        close("file in diffusers", there(pipe, latents), expected, 1)


def test_a_file_of_sdxl_needs_nothing_else():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder, 16)
        pipe = small_sdxl(folder)
        expected = picture(folder, folder / "model")
        close("folder in diffusers", there(pipe, latents), expected, 1)
        file = merged(folder, folder / "model")
        tensors = load_file(file)
        (folder / "bare").mkdir()
        bare = folder / "bare/model.safetensors"
        save_file(tensors | {"conditioner.embedders.1.model.logit_scale": torch.ones(())}, bare)  # without metadata
        close("without configurations", picture(folder, bare), expected, 0)
        marks = ["--prompt", "wow!! so many !!! marks", "--print_tokens"]
        shown = [
            run_ok("text_to_image", "--pretrained_model_name_or_path", model, *marks)
            for model in (folder / "model", bare)
        ]
        assert shown[0] == shown[1], shown
        mark = torch.zeros(0)
        pipe.scheduler = EulerDiscreteScheduler(
            **SCHEDULE, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
        )
        pipe.save_pretrained(str(folder / "velocity"))
        velocity = picture(folder, folder / "velocity")
        assert abs(velocity - expected).mean() > 1
        save_file(tensors | {"v_pred": mark, "ztsnr": mark}, bare)
        close("marked", picture(folder, bare), velocity, 0)
        marked = load_file(merged(folder, folder / "velocity", "v.safetensors"))
        assert "v_pred" in marked and "ztsnr" in marked and "v_pred" not in tensors


def small_sd2(folder):
    """A model with the fixed numbers of Stable Diffusion 2.x, but few channels."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=96,
        block_out_channels=(64, 128),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[1, 2],
        cross_attention_dim=64,
        use_linear_projection=True,
        upcast_attention=True,
    )
    clip_tokenizer(folder / "clip")
    pipe = StableDiffusionPipeline(
        tokenizer=bang_tokenizer(folder),
        text_encoder=CLIPTextModel(text_config(num_hidden_layers=2, hidden_act="gelu")),
        unet=unet,
        vae=autoencoder(0.18215),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(str(folder / "model"))
    return pipe


def test_a_file_of_stable_diffusion_2_has_the_names_that_others_read():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        latents = latents_file(folder, 16)
        pipe = small_sd2(folder)
        expected = picture(folder, folder / "model")
        close("folder in diffusers", there(pipe, latents), expected, 1)
        file = merged(folder, folder / "model")
        close("file alone", picture(folder, file), expected, 0)
        tensors = load_file(file)
        assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias" in tensors
        assert not any(name.startswith("cond_stage_model.transformer.") for name in tensors)
        (folder / "bare").mkdir()
        bare = folder / "bare/model.safetensors"
        # As the original: with the last layer, which the UNet does not read, and CLIP's projection.
        last = {
            name.replace("resblocks.1.", "resblocks.2."): value * 2
            for name, value in tensors.items()
            if ".resblocks.1." in name
        }
        more = {"cond_stage_model.model.text_projection": torch.ones(64, 64)}
        save_file(tensors | last | more, bare)
        close("without configurations", picture(folder, bare), expected, 0)
        shown = run_ok("text_to_image", "--pretrained_model_name_or_path", bare, "--prompt", PROMPT, "--print_tokens")
        assert json.loads(shown.splitlines()[0])[-1] == 0  # OpenCLIP's padding
        single = StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(folder / "model"),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
        )
        single.scheduler = pipe.scheduler
        close("file in diffusers", there(single, latents), expected, 1)


main(globals())
