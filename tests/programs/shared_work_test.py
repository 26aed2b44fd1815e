# SPDX-License-Identifier: Apache-2.0
"""Pictures that several processes deal out, and mpirun as a launcher."""

import pathlib
import shutil
import subprocess

from processes_support import clean_environment, relative_difference, run_ok, training_flags
from support import BIN, MODEL, draw, main, read_latents, scratch


def drawing_flags(folder, *more):
    return [
        "--pretrained_model_name_or_path",
        MODEL,
        "--num_inference_steps",
        4,
        "--device",
        "cpu",
        "--prompt",
        "a red apple",
        "--seed",
        5,
        "--output",
        folder / "shared.png",
        "--save_latents",
        folder / "shared.safetensors",
        *more,
    ]


def test_pictures_are_dealt_out():
    """Three pictures by two processes are those of one process, files and latents."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for more in (["--num_images_per_prompt", 3], ["--seeds", "1,2,3"]):
            seed = [] if "--seeds" in more else ["--seed", 5]
            draw(
                folder / "alone.png",
                "--prompt",
                "a red apple",
                *seed,
                "--save_latents",
                folder / "alone.safetensors",
                *more,
            )
            flags = drawing_flags(folder, *more)
            if not seed:
                del flags[flags.index("--seed") : flags.index("--seed") + 2]
            text = run_ok("text_to_image", 2, lambda rank: flags)
            assert text.count("picture: ") == 3, text
            shape = read_latents(folder / "shared.safetensors")["latents"][0]
            assert shape[0] == 3, shape
            assert relative_difference(folder / "alone.safetensors", folder / "shared.safetensors") < 1e-5


def test_a_sheet_is_dealt_out():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        more = ["--prompt", "a red apple", "--xy", "steps=1,2,3", "--xy", "guidance=1,5"]
        draw(folder / "alone.png", "--seed", 5, *more)
        flags = [
            "--pretrained_model_name_or_path",
            MODEL,
            "--num_inference_steps",
            4,
            "--device",
            "cpu",
            "--seed",
            5,
            "--output",
            folder / "shared.png",
            *more,
        ]
        run_ok("text_to_image", 2, lambda rank: flags)
        assert (folder / "alone.png").read_bytes() == (folder / "shared.png").read_bytes()


def class_pictures(folder):
    return {path.name: path.read_bytes() for path in (folder / "class").glob("class-*.png")}


def test_class_pictures_are_dealt_out():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        more = [
            "--with_prior_preservation",
            "--class_prompt",
            "a bear",
            "--num_class_images",
            2,
            "--sample_batch_size",
            1,
        ]
        pictures = {}
        for size in (1, 2):
            place = folder / str(size)
            flags = training_flags(place / "out", "--class_data_dir", place / "class", *more, steps=1)
            run_ok("train_dreambooth_lora", size, lambda rank: flags)
            pictures[size] = class_pictures(place)
        assert len(pictures[1]) == 2 and pictures[1] == pictures[2], pictures[1].keys() ^ pictures[2].keys()


def test_mpirun():
    if shutil.which("mpirun") is None:
        print("not run: mpirun is not installed; hint: scripts/bootstrap.sh --tests")
        return
    with scratch() as folder:
        folder = pathlib.Path(folder)
        command = [
            "mpirun",
            "-n",
            "2",
            "--oversubscribe",
            BIN / "train_dreambooth_lora",
            *training_flags(folder, steps=2),
        ]
        allowed = clean_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        done = subprocess.run(list(map(str, command)), env=allowed, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stderr == "", done
        assert done.stdout.count("Num processes = 2") == 1, done.stdout


if __name__ == "__main__":
    main(globals())
