# SPDX-License-Identifier: Apache-2.0
"""Pictures that are cut anew each time pass the autoencoder together on a GPU, over the simulated CUDA device."""

import pathlib
import shutil

from simulated_cuda_test import LOOSE, REAL, SAME_KERNELS, difference, train_on, waits_between
from support import SOURCE, SUBJECT, main, scratch

IMAGES = SOURCE / "tests/parity/data/images"


def pictures(folder):
    """Three that are not square, and one whose samples are all the same."""
    folder.mkdir()
    for name in ["resize_source.png", "colour.jpg", "interlaced.png"]:
        shutil.copyfile(IMAGES / name, folder / name)
    shutil.copyfile(SUBJECT / "4_white.png", folder / "white.png")
    return folder


def test_pictures_of_a_batch_are_encoded_together_with_the_cpus_losses():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = ["--instance_data_dir", pictures(folder / "pictures"), "--train_batch_size", 4, *SAME_KERNELS]
        for name, more in [
            ("cut anew", ["--random_flip"]),
            ("cached", ["--random_flip", "--cache_latents"]),
            ("in buckets", ["--enable_bucket"]),
        ]:
            found = []
            for device in ["cpu", "cuda"]:
                losses, text = train_on(folder / f"{name}-{device}", device, *flags, *more, steps=5)
                assert name != "cut anew" or "3 of 4 pictures pass the autoencoder in each step" in text, text
                found.append(losses)
            error = difference(*found)
            print(f"  encoding, {name}: losses within {error:.1e} of the CPU's")
            assert error <= 1e-5 * LOOSE, (name, error, found)


def test_a_batch_is_read_back_once():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = ["--instance_data_dir", pictures(folder / "pictures"), "--train_batch_size", 4]
        for steps in (6, 9):
            train_on(folder / str(steps), "cuda", *flags, steps=steps, counts=folder / f"{steps}.json")
        waits = sum(waits_between(folder / "6.json", folder / "9.json").values())
        # One of each step, and one of each batch for its distributions.
        print(f"  waits, encoding: {waits} in 3 steps, at most 6")
        assert waits <= 6 if REAL else waits == 6, waits


if __name__ == "__main__":
    main(globals())
