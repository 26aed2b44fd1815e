# SPDX-License-Identifier: Apache-2.0
"""--taesd: pictures are decoded with TAESD's decoder, as the real diffusers does with its AutoencoderTiny."""

import pathlib

import numpy
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from support import CHANNELS, FACTOR, MODEL, SOURCE, draw, main, run, scratch, train


def make_tiny(folder):
    """TAESD's form at the sizes of the bundled model's autoencoder, with random weights."""
    torch.manual_seed(5)
    levels = FACTOR.bit_length()
    widths, blocks = (8,) * levels, (1,) * levels
    tiny = AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    tiny.save_pretrained(folder)
    return tiny


def in_the_authors_layout(folder, path):
    """Names without 'decoder.layers.', in a sequence that begins with the layer for tanh."""
    tensors = {}
    for name, value in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        if name.startswith("decoder.layers."):
            place, rest = name.removeprefix("decoder.layers.").split(".", 1)
            tensors[f"{int(place) + 1}.{rest}"] = value.contiguous()
    save_file(tensors, path)


def test_pictures_equal_diffusers():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        tiny = make_tiny(folder / "tiny")
        in_the_authors_layout(folder / "tiny", folder / "taesd_decoder.safetensors")
        flags = ["--prompt", "a red apple", "--seed", 3, "--num_inference_steps", 2]
        flags += ["--save_latents", folder / "latents.safetensors"]
        for decoder in [folder / "tiny", folder / "taesd_decoder.safetensors"]:
            draw(folder / "x.png", *flags, "--taesd", decoder)
            latents = load_file(folder / "latents.safetensors")["latents"]
            with torch.no_grad():
                there = (tiny.decode(latents / tiny.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
            picture = Image.open(folder / "x.png")
            here = numpy.asarray(picture, dtype="float64")
            assert numpy.abs(here - there[0].permute(1, 2, 0).numpy() * 255).max() < 0.51
            assert "VAE Decoder: TAESD" in picture.text["parameters"]


def test_validation_pictures_are_decoded_with_it_and_training_stays_the_same():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = ["--validation_prompt", "a sks bear", "--num_validation_images", 1, "--validation_steps", 1]
        make_tiny(folder / "decoder")
        train(folder / "whole", *flags, "--seed", 1, steps=1)
        train(folder / "tiny", *flags, "--seed", 1, "--taesd", folder / "decoder", steps=1)
        adapters = [(folder / name / "lightlora.safetensors").read_bytes() for name in ["whole", "tiny"]]
        assert adapters[0] == adapters[1]
        pictures = [Image.open(folder / name / "validation/step-000001-0.png") for name in ["whole", "tiny"]]
        assert pictures[0].size == pictures[1].size
        assert pictures[0].tobytes() != pictures[1].tobytes()
        assert "VAE Decoder: TAESD" in pictures[1].text["parameters"]
        assert "VAE Decoder" not in pictures[0].text["parameters"]


def test_other_files_are_named_in_one_line():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for wrong, hint in [
            (MODEL / "vae", "a decoder of TAESD"),
            (SOURCE / "tests/parity/data/taesd", f"{CHANNELS} channels and {FACTOR} pixels"),
            (folder / "missing.safetensors", "got none"),
        ]:
            flags = ["--pretrained_model_name_or_path", MODEL, "--prompt", "a", "--device", "cpu"]
            done = run("text_to_image", *flags, "--taesd", wrong, "--output", folder / "x.png")
            assert done.returncode == 1, done.stderr
            assert done.stderr.count("\n") == 1 and hint in done.stderr, done.stderr
            assert not (folder / "x.png").exists()


main(globals())
