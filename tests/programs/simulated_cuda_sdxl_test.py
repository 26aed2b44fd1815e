# SPDX-License-Identifier: Apache-2.0
"""SDXL over the simulated CUDA device, as simulated_cuda_test.py has it for the bundled model."""

import pathlib

from simulated_cuda_test import (
    LOOSE,
    NATIVE,
    REAL,
    SAME_KERNELS,
    difference,
    invert,
    latents_on,
    losses,
    simulated,
    train_on,
)
from support import SOURCE, distance, main, run_ok, scratch

XL = ["--pretrained_model_name_or_path", SOURCE / "tests/parity/data/pipeline_xl"]
TRAINING = [*XL, "--resolution", 16, "--variant", "classic", *SAME_KERNELS]


def test_both_text_encoders_learn_as_on_the_cpu_recorded_or_not():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = [*TRAINING, "--train_text_encoder", "--random_flip", "--snr_gamma", 5]
        expected, _ = train_on(folder / "cpu", "cpu", *flags, steps=6)
        results = []
        for choice in ["on", "off"]:
            got, _ = train_on(folder / choice, "cuda", "--cuda_graph", choice, *flags, steps=6)
            error = difference(expected, got)
            print(f"  SDXL, cuda_graph {choice}: losses within {error:.1e} of the CPU's")
            assert error <= 1e-5 * LOOSE, (choice, error, expected, got)
            results.append((got, (folder / choice / NATIVE).read_bytes()))
        assert REAL or results[0] == results[1], results


def test_half_precision_with_checkpointing_and_cached_latents_has_about_the_cpus_losses():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = [*TRAINING, "--mixed_precision", "bf16", "--gradient_checkpointing", "--cache_latents"]
        found = [train_on(folder / device, device, *flags, steps=5)[0] for device in ("cpu", "cuda")]
        error = difference(*found)
        print(f"  SDXL, bf16: losses within {error:.1e} of the CPU's")
        assert error <= 2e-2 * LOOSE, (error, found)


def test_pictures_are_the_cpus():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train_on(folder / "lora", "cpu", *TRAINING, "--train_text_encoder", "--learning_rate", "1e-2", steps=2)
        lora = ["--lora", folder / "lora" / NATIVE]
        sizes = ["--original_size", 32, 24, "--crops_coords_top_left", 2, 4, "--negative_prompt", "a cat"]
        for name, limit, more in [
            ("the folder's euler", 1e-4, lora),
            ("ddim with sizes", 1e-4, ["--scheduler", "ddim", "--guidance_rescale", 0.7, *sizes]),
            ("bf16", 5e-2, ["--dtype", "bf16", "--guidance_scale", 3, *lora]),
        ]:
            more = [*XL, "--num_inference_steps", 4, *more]
            expected = latents_on(folder, "cpu", *more)
            error = distance(latents_on(folder, "cuda", *more), expected) / distance(expected, [0] * len(expected))
            print(f"  SDXL, {name}: latents within {error:.1e} of the CPU's")
            assert error < limit * LOOSE, (name, error)


def test_a_word_for_both_encoders_is_learned_as_on_the_cpu():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        more = [*XL, "--resolution", 16]
        run_ok("textual_inversion", *invert(folder / "cpu", "cpu", *more))
        simulated("textual_inversion", *invert(folder / "cuda", "cuda", *more))
        error = difference(losses(folder / "cpu"), losses(folder / "cuda"))
        print(f"  SDXL, a word: losses within {error:.1e} of the CPU's")
        assert error < 1e-5 * LOOSE


if __name__ == "__main__":
    main(globals())
