# SPDX-License-Identifier: Apache-2.0
"""The unchanged programs over the simulated CUDA device (tests/fake_cuda): same results as on the CPU,
and no needless waits for the device. With LIGHTLORA_REAL_GPU set, the results over a real GPU, whose kernels round
otherwise: scripts/gpu_check.sh."""

import json
import os
import pathlib
import shutil
import sys

from processes_support import Processes
from support import (
    BIN,
    MODEL,
    SUBJECT,
    distance,
    main,
    read_latents,
    read_safetensors,
    run,
    run_ok,
    scratch,
    subject_flags,
    word_flags,
)

LIBRARY = BIN.parent / "lib/libfake_cuda.so"
REAL = bool(os.environ.get("LIGHTLORA_REAL_GPU"))
DEVICE = {"NVIDIA_TF32_OVERRIDE": "0"} if REAL else {"LD_PRELOAD": str(LIBRARY)}
# How much further than the CPU's own kernels a GPU's may be from the CPU.
LOOSE = 100 if REAL else 1
NATIVE = "lightlora.safetensors"
# Thin products stop at rank 8, and packed weights are the CPU's: beyond both, kernels are the same, but for attention,
# GroupNorm and GEGLU, of which a CPU has its own.
SAME_KERNELS = ["--pack_weights", "off", "--rank", 12]


def simulated(program, *arguments, counts=None):
    """Runs a program on the simulated device; its standard output."""
    environment = {**os.environ, **DEVICE}
    if counts:
        environment["FAKE_CUDA_COUNTS"] = str(counts)
        if REAL:
            environment["LD_PRELOAD"] = str(BIN.parent / "lib/libcount_waits.so")
    done = run(program, *arguments, env=environment)
    assert done.returncode == 0 and done.stderr == "", (program, arguments, done)
    return done.stdout


def training(output, device, *more, steps=3):
    return [*subject_flags(output), "--train_batch_size", 2, "--max_train_steps", steps, "--device", device, *more]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_on(folder, device, *more, steps=3, **options):
    """The losses of a run, and what the program said."""
    arguments = training(folder, device, *more, steps=steps)
    if device == "cpu":
        return losses_of(folder, run_ok("train_dreambooth_lora", *arguments))
    return losses_of(folder, simulated("train_dreambooth_lora", *arguments, **options))


def losses_of(folder, output):
    assert "this step cannot be recorded" not in output, output
    return losses(folder), output


def difference(expected, got):
    """The largest relative difference of two rows of losses."""
    assert len(expected) == len(got) > 0, (expected, got)
    return max(abs(a - b) / abs(a) for a, b in zip(expected, got))


PRIOR = ["--with_prior_preservation", "--class_prompt", "a bear", "--num_class_images", 2]

# Every variant, optimiser and option once, in a few runs. Beside the CPU's result the limit is what
# grouped projections (the device multiplies q, k and v at once) and half precision change.
KINDS = {
    "light": (1e-5, ["--gradient_checkpointing", "--snr_gamma", 5, "--gradient_accumulation_steps", 2]),
    "classic": (1e-5, [*PRIOR, "--optimizer", "lion", "--learning_rate", "1e-4"]),
    "fused": (1e-5, ["--train_text_encoder", "--optimizer", "adafactor"]),
    "loha": (1e-5, ["--optimizer", "sgd", "--cache_latents", "--noise_offset", 0.1, "--loss_type", "huber"]),
    "lora_xs": (1e-5, ["--optimizer", "prodigy", "--learning_rate", 1, "--enable_bucket", "--random_flip"]),
    "vera": (1e-5, ["--batch_invariant"]),
    "light bf16": (2e-2, ["--mixed_precision", "bf16"]),
    "classic fp16": (2e-2, ["--mixed_precision", "fp16", "--caption_dropout_rate", 0.5]),
}


def test_training_has_the_cpus_losses():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, (limit, more) in KINDS.items():
            if "--with_prior_preservation" in more:
                more = [*more, "--class_data_dir", folder / "class"]
            flags = ["--variant", name.split()[0], *SAME_KERNELS, *more]
            expected, _ = train_on(folder / (name + "-cpu"), "cpu", *flags, steps=5)
            got, _ = train_on(folder / (name + "-cuda"), "cuda", *flags, steps=5)
            error = difference(expected, got)
            print(f"  {name}: losses within {error:.1e} of the CPU's")
            assert error <= limit * LOOSE, (name, error, expected, got)


def test_the_recorded_step_equals_the_eager_one_bit_for_bit():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, more in [
            ("plain", ["--enable_bucket", "--lr_scheduler", "cosine", "--use_ema"]),
            ("checkpointing", ["--gradient_checkpointing", "--mixed_precision", "fp16"]),
            ("text encoder", ["--train_text_encoder", "--rank_pattern", "to_k=2", "--loss_type", "smooth_l1"]),
            ("long captions", ["--train_text_encoder", "--max_token_length", 150]),
            ("dropout", ["--lora_dropout", 0.2, *PRIOR, "--class_data_dir", folder / "class"]),
        ]:
            results = []
            for choice in ["on", "off"]:
                output = folder / f"{name}-{choice}"
                found, _ = train_on(output, "cuda", "--cuda_graph", choice, *more, steps=8)
                results.append((found, (output / NATIVE).read_bytes()))
            error = difference(results[0][0], results[1][0])
            print(f"  recorded steps, {name}: losses within {error:.1e} of the eager ones'")
            assert error < 1e-3 if REAL else results[0] == results[1], (name, results[0][0], results[1][0])


def test_the_recorded_step_sees_a_loss_scale_that_grows():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        flags = ["--mixed_precision", "fp16", "--checkpointing_steps", 2]
        train_on(folder / "on", "cuda", *flags, steps=2)
        state = folder / "on/checkpoint-2/training_state.safetensors"
        header, data = read_safetensors(state)
        begin = state.stat().st_size - len(data) + header["scaler.growth"]["data_offsets"][0]
        # It grows after 2000 steps without an overflow: as if there had been 1997.
        content = state.read_bytes()
        state.write_bytes(content[:begin] + (1997).to_bytes(4, "little") + content[begin + 4 :])
        shutil.copytree(folder / "on", folder / "off")
        results = []
        for choice in ["on", "off"]:
            more = ["--cuda_graph", choice, "--resume_from_checkpoint", "latest"]
            found, _ = train_on(folder / choice, "cuda", *flags, *more, steps=8)
            lines = (folder / choice / "metrics.jsonl").read_text().splitlines()
            assert len({json.loads(line)["loss_scale"] for line in lines}) > 1, lines
            results.append((found, (folder / choice / NATIVE).read_bytes()))
        assert difference(results[0][0], results[1][0]) < 1e-3 if REAL else results[0] == results[1], results


def test_dropout_with_checkpointing_is_not_recorded_and_is_the_same_dropout():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        plain, _ = train_on(folder / "a", "cuda", "--lora_dropout", 0.2, steps=5)
        again, output = train_on(folder / "b", "cuda", "--lora_dropout", 0.2, "--gradient_checkpointing", steps=5)
        assert "notice: no CUDA graph" in output, output
        assert difference(plain, again) < 1e-5, (plain, again)


def test_the_second_device_learns_what_the_first_does():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        first, _ = train_on(folder / "a", "cuda", steps=4)
        second, _ = train_on(folder / "b", "cuda:1", steps=4)
        assert first == second
        assert (folder / "a" / NATIVE).read_bytes() == (folder / "b" / NATIVE).read_bytes()
        done = run(
            "train_dreambooth_lora", *training(folder / "c", "cuda:5"), env={**os.environ, "LD_PRELOAD": str(LIBRARY)}
        )
        assert done.returncode == 1 and "expected a GPU below cuda:2, got cuda:5" in done.stderr, done


def test_a_run_goes_on_on_the_other_device():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        whole, _ = train_on(folder / "whole", "cpu", *SAME_KERNELS, steps=6)
        for first, second in [("cpu", "cuda"), ("cuda", "cpu")]:
            output = folder / f"{first}-{second}"
            train_on(output, first, *SAME_KERNELS, "--checkpointing_steps", 3, steps=3)
            got, text = train_on(output, second, *SAME_KERNELS, "--resume_from_checkpoint", "latest", steps=6)
            assert "at step 3 of 6" in text and "other settings" not in text, text
            assert difference(whole, got) < 1e-5, (first, second, whole, got)


def invert(output, device, *more):
    return [
        *word_flags(output),
        "--train_batch_size",
        2,
        "--num_vectors",
        2,
        "--max_train_steps",
        6,
        "--pack_weights",
        "off",
        "--device",
        device,
        *more,
    ]


def test_a_word_is_learned_on_the_device_as_on_the_cpu_recorded_or_not():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        run_ok("textual_inversion", *invert(folder / "cpu", "cpu"))
        for choice in ["on", "off"]:
            simulated("textual_inversion", *invert(folder / choice, "cuda", "--cuda_graph", choice))
            assert difference(losses(folder / "cpu"), losses(folder / choice)) < 1e-5 * LOOSE
        words = [(folder / choice / "learned_embeds.safetensors").read_bytes() for choice in ["on", "off"]]
        assert REAL or words[0] == words[1]


def latents_on(folder, device, *more, counts=None):
    name = folder / f"{device}.safetensors"
    arguments = [
        "--pretrained_model_name_or_path",
        MODEL,
        "--prompt",
        "a bear",
        "--seed",
        3,
        "--output",
        folder / f"{device}.png",
        "--save_latents",
        name,
        "--pack_weights",
        "off",
        "--device",
        device,
        *more,
    ]
    simulated("text_to_image", *arguments, counts=counts) if device != "cpu" else run_ok("text_to_image", *arguments)
    return read_latents(name)["latents"][1]


def test_pictures_are_the_cpus():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train_on(folder / "lora", "cpu", *SAME_KERNELS, "--learning_rate", "1e-2", steps=2)
        lora = ["--lora", folder / "lora" / NATIVE]
        for device in ["cpu", "cuda"]:
            arguments = ["--pretrained_model_name_or_path", MODEL, *lora, "--device", device]
            arguments += ["--merge_to", folder / f"{device}-model.safetensors"]
            run_ok("text_to_image", *arguments) if device == "cpu" else simulated("text_to_image", *arguments)
        merged = [(folder / f"{device}-model.safetensors").read_bytes() for device in ["cpu", "cuda"]]
        assert REAL or merged[0] == merged[1]
        picture = sorted([*SUBJECT.glob("*.png"), *SUBJECT.glob("*.jpg")])[0]
        for name, limit, more in [
            ("ddim", 1e-4, ["--scheduler", "ddim", "--eta", 0.5, *lora]),
            ("euler", 1e-4, ["--scheduler", "euler", "--num_images_per_prompt", 3, "--batch_size", 2]),
            ("unipc", 1e-4, ["--scheduler", "unipc", "--guidance_scale", 1, *lora, *lora]),
            ("dpmpp_2m", 1e-4, ["--scheduler", "dpmpp_2m", "--use_karras_sigmas", "--vae_tiling"]),
            ("pndm", 1e-4, ["--scheduler", "pndm", "--image", picture, "--strength", 0.8]),
            ("euler_ancestral", 1e-4, ["--scheduler", "euler_ancestral"]),
            ("ddpm", 1e-4, ["--scheduler", "ddpm"]),
            ("fp16", 5e-2, ["--scheduler", "ddim", "--dtype", "fp16"]),
            ("lcm", 1e-4, ["--scheduler", "lcm", *lora]),
            ("bf16", 5e-2, ["--scheduler", "ddim", "--dtype", "bf16", *lora]),
        ]:
            more = [*more, "--num_inference_steps", 4]
            expected = latents_on(folder, "cpu", *more)
            error = distance(latents_on(folder, "cuda", *more), expected) / distance(expected, [0] * len(expected))
            print(f"  {name}: latents within {error:.1e} of the CPU's")
            assert error < limit * LOOSE, (name, error)


def test_recorded_steps_draw_the_pictures_of_eager_ones_bit_for_bit():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for scheduler, more in [("unipc", []), ("ddim", ["--num_images_per_prompt", 3, "--batch_size", 2])]:
            latents = [
                latents_on(
                    folder, "cuda", "--cuda_graph", choice, "--scheduler", scheduler, "--num_inference_steps", 8, *more
                )
                for choice in ["on", "off"]
            ]
            error = distance(*latents) / distance(latents[1], [0] * len(latents[1]))
            print(f"  recorded steps, drawing with {scheduler}: latents within {error:.1e} of the eager ones'")
            assert error < 1e-3 if REAL else latents[0] == latents[1], scheduler


def waits_between(few, many):
    """What two runs of a program that differ in their number of steps waited for, one run less the other."""
    few, many = (json.loads(path.read_text())["waits"] for path in (few, many))
    return {name: many[name] - few.get(name, 0) for name in many if many[name] != few.get(name, 0)}


def test_a_training_step_waits_once_for_the_device_and_a_batch_never():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, budget, more in [
            ("plain", 1, ["--cuda_graph", "off"]),
            ("recorded", 1, []),
            ("fp16", 1, ["--mixed_precision", "fp16", "--snr_gamma", 5]),
            ("text encoder", 1, ["--train_text_encoder"]),
            ("accumulation", 1, ["--gradient_accumulation_steps", 3]),
            ("prodigy", 1, ["--optimizer", "prodigy", "--learning_rate", 1]),
        ]:
            for steps in (6, 9):
                simulated(
                    "train_dreambooth_lora",
                    *training(folder / f"{name}-{steps}", "cuda", "--cache_latents", *more, steps=steps),
                    counts=folder / f"{name}-{steps}.json",
                )
            waits = waits_between(folder / f"{name}-6.json", folder / f"{name}-9.json")
            print(f"  waits, {name}: {sum(waits.values())} in 3 steps, at most {3 * budget}")
            assert sum(waits.values()) <= 3 * budget if REAL else sum(waits.values()) == 3 * budget, (name, waits)


def test_denoising_steps_never_wait():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for scheduler in ["ddim", "euler", "dpmpp_2m", "unipc"]:
            for steps in (4, 9):
                latents_on(
                    folder,
                    "cuda",
                    "--scheduler",
                    scheduler,
                    "--num_inference_steps",
                    steps,
                    counts=folder / f"{steps}.json",
                )
            waits = waits_between(folder / "4.json", folder / "9.json")
            print(f"  waits, drawing with {scheduler}: {sum(waits.values())} in 5 steps, at most 0")
            assert waits == {}, (scheduler, waits)


def test_processes_take_a_device_each_and_learn_the_same():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, visible in [("two", ["0,1", "0,1"]), ("own", ["0", "1"])]:
            both = Processes(
                "train_dreambooth_lora",
                2,
                lambda rank: training(folder / name, "cuda", steps=2),
                before=lambda rank: ["env", f"CUDA_VISIBLE_DEVICES={visible[rank]}"],
                LD_PRELOAD=str(LIBRARY),
            ).wait()
            assert all(code == 0 for code, _, _ in both.values()), both
            assert "exchange gradients through the CPU" in both[0][1], both
        assert (folder / "two" / NATIVE).read_bytes() == (folder / "own" / NATIVE).read_bytes()


def test_a_numbered_device_goes_with_one_process_of_a_machine():
    with scratch() as folder:
        both = Processes(
            "train_dreambooth_lora",
            2,
            lambda rank: training(pathlib.Path(folder) / "out", "cuda:1", steps=2),
            LD_PRELOAD=str(LIBRARY),
            CUDA_VISIBLE_DEVICES="0,1",
        ).wait()
        for code, output, error in both.values():
            assert code == 2, (code, output, error)
            assert "'--device': cuda:1 cannot be combined with 2 processes on one machine" in error, error


# What counts on the simulated device, or on its second GPU, or on bits that only equal kernels have.
SIMULATED_ONLY = ["second_device", "take_a_device", "numbered_device"]

if not REAL and not LIBRARY.exists():
    print("SKIPPED: no simulated device here, as this LibTorch brings CUDA itself")
    sys.exit(77)

if __name__ == "__main__":
    main({name: value for name, value in globals().items() if not REAL or not any(w in name for w in SIMULATED_ONLY)})
