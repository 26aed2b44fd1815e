# SPDX-License-Identifier: Apache-2.0
"""Makes the numbers that tests/stable_diffusion/{unet,vae,tiny_decoder}_test.cpp compare with.

Made with Python 3.11, torch 2.11.0 (CPU), diffusers 0.42.1, safetensors 0.8.0:

    python tests/parity/make_models.py

writes one folder per model below tests/parity/data: the model's config.json as diffusers saves it,
its weights rounded to fp16 (in fp16), and `numbers.safetensors` with inputs and outputs, computed
in fp64 with the same rounded weights. Inputs are random but representable in fp16, so that every
dtype starts from equal values.
"""

import json
import os
import pathlib
import shutil

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

DATA = pathlib.Path(__file__).parent / "data"

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UP_CROSS, UP_PLAIN = "CrossAttnUpBlock2D", "UpBlock2D"

UNETS = {
    # As SD 1.x: convolutions around the transformers, one number of heads for all levels.
    "unet_sd1": dict(
        config=dict(
            sample_size=8,
            block_out_channels=(16, 24, 24),
            down_block_types=(CROSS, CROSS, PLAIN),
            up_block_types=(UP_PLAIN, UP_CROSS, UP_CROSS),
            layers_per_block=2,
            attention_head_dim=4,
            cross_attention_dim=24,
            norm_num_groups=8,
        ),
        size=(8, 8),
        modules=[
            "time_embedding",
            "down_blocks.1.resnets.0",
            "down_blocks.1.attentions.0",
            "down_blocks.1.attentions.0.transformer_blocks.0",
            "mid_block.resnets.1",
            "up_blocks.1.resnets.2",
        ],
    ),
    # As SD 2.x: linear projections, heads per level, upcast attention; not square.
    "unet_sd2": dict(
        config=dict(
            sample_size=(4, 8),
            block_out_channels=(8, 16, 24),
            down_block_types=(CROSS, CROSS, PLAIN),
            up_block_types=(UP_PLAIN, UP_CROSS, UP_CROSS),
            layers_per_block=1,
            attention_head_dim=[2, 4, 3],
            cross_attention_dim=20,
            norm_num_groups=4,
            use_linear_projection=True,
            upcast_attention=True,
        ),
        size=(4, 8),
        modules=["down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.2.attentions.1"],
    ),
    # Sizes that do not divide, and the switches that published models rarely touch.
    "unet_odd": dict(
        config=dict(
            sample_size=None,
            in_channels=5,
            out_channels=3,
            block_out_channels=(12, 18, 18),
            down_block_types=(PLAIN, CROSS, CROSS),
            up_block_types=(UP_CROSS, UP_CROSS, UP_PLAIN),
            layers_per_block=[1, 2, 1],
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[3, 5, 2],
            cross_attention_dim=[12, 12, 12],
            only_cross_attention=[False, True, True],
            norm_num_groups=6,
            norm_eps=1e-4,
            center_input_sample=True,
            flip_sin_to_cos=False,
            freq_shift=1,
            time_embedding_dim=40,
            downsample_padding=0,
            mid_block_scale_factor=1.25,
            conv_in_kernel=1,
            conv_out_kernel=5,
            act_fn="swish",
        ),
        size=(13, 7),
        modules=["down_blocks.0.downsamplers.0", "down_blocks.1.attentions.1", "mid_block.resnets.0"],
    ),
}

VAES = {
    "vae_normal": dict(
        config=dict(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[8, 16, 16],
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=24,
        ),
        size=(24, 16),
        modules=["encoder.mid_block.attentions.0", "decoder.up_blocks.1"],
    ),
    "vae_other": dict(
        config=dict(
            in_channels=1,
            out_channels=2,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[6, 12],
            layers_per_block=2,
            latent_channels=3,
            norm_num_groups=3,
            sample_size=[20, 12],
            scaling_factor=0.5,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
        size=(21, 13),
        modules=["decoder.mid_block"],
    ),
}

# As TAESD, and of the small models' two levels.
TINY = {"taesd": (1, 2, 0, 1), "taesd_two_levels": (2, 1)}


def half_representable(*size):
    return torch.randn(*size, dtype=torch.float64).half().double()


def randomise(model):
    """Random weights of a size at which every layer matters, rounded to fp16."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.2)
        elif parameter.dim() == 1:
            parameter.data.normal_(mean=1.0, std=0.2)
        else:
            parameter.data.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        parameter.data = parameter.data.half().to(torch.float64)
    return model.double().eval()


def record(model, names, numbers):
    """Keeps input and output of the named modules' first call in `numbers`."""

    def hook(name):
        def keep(_, args, kwargs, output):
            if f"{name}.output" in numbers:
                return
            tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
            for i, tensor in enumerate(tensors):
                numbers[f"{name}.input.{i}"] = tensor.detach().clone()
            result = output[0] if isinstance(output, tuple) else output
            numbers[f"{name}.output"] = result.detach().clone()

        return keep

    return [model.get_submodule(n).register_forward_hook(hook(n), with_kwargs=True) for n in names]


def save(folder, model, numbers):
    path = DATA / folder
    shutil.rmtree(path, ignore_errors=True)
    model.half().save_pretrained(path)
    weights = path / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights), weights)  # without the library's own metadata
    save_file({k: v.contiguous() for k, v in numbers.items()}, path / "numbers.safetensors")
    for file in path.iterdir():
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{folder}: {json.dumps(model.config.block_out_channels)}, {size / 1024:.0f} KiB")


def make_unet(folder, config, size, modules):
    torch.manual_seed(len(folder) + sum(size))
    model = randomise(UNet2DConditionModel(**config))
    width = config["cross_attention_dim"]
    width = width[0] if isinstance(width, list) else width
    sample = half_representable(2, model.config.in_channels, *size).requires_grad_()
    context = half_representable(2, 7, width).requires_grad_()
    timesteps = torch.tensor([981, 37])
    numbers = {}
    hooks = record(model, modules, numbers)
    output = model(sample, timesteps, context).sample
    for handle in hooks:
        handle.remove()
    weighting = half_representable(*output.shape)
    (output * weighting).sum().backward()
    numbers |= {
        "sample": sample.detach(),
        "timesteps": timesteps,
        "context": context.detach(),
        "output": output.detach(),
        "weighting": weighting,
        "grad.sample": sample.grad,
        "grad.context": context.grad,
        # At time zero all angles are zero, so nothing depends on how a CPU rounds fp32 cosines.
        "output.time_zero": model(sample, 0, context).sample.detach(),
    }
    save(folder, model, numbers)


def make_vae(folder, config, size, modules):
    torch.manual_seed(len(folder) + sum(size))
    model = randomise(AutoencoderKL(**config))
    pictures = half_representable(2, model.config.in_channels, *size)
    numbers = {}
    hooks = record(model, modules, numbers)
    with torch.no_grad():
        posterior = model.encode(pictures).latent_dist
        latents = half_representable(*posterior.mean.shape)
        numbers |= {
            "pictures": pictures,
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "std": posterior.std,
            "latents": latents,
            "decoded": model.decode(latents).sample,
        }
    for handle in hooks:
        handle.remove()
    save(folder, model, numbers)


def make_tiny(folder, blocks):
    torch.manual_seed(len(folder))
    widths, ones = (8,) * len(blocks), (1,) * len(blocks)
    model = randomise(
        AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=ones,
            num_decoder_blocks=blocks,
        )
    )
    latents = 2 * half_representable(2, model.config.latent_channels, 5, 3)
    with torch.no_grad():
        decoded = model.decode(latents / model.config.scaling_factor).sample
    save(folder, model, {"latents": latents, "decoded": decoded})


if __name__ == "__main__":
    for name, options in UNETS.items():
        make_unet(name, **options)
    for name, options in VAES.items():
        make_vae(name, **options)
    for name, blocks in TINY.items():
        make_tiny(name, blocks)
