# SPDX-License-Identifier: Apache-2.0
"""`train_dreambooth_lora --dry_run`: what it counts is what runs, at full size in seconds, and nothing is written."""

import json
import os
import pathlib
import re
import shutil
import time

from support import BIN, MODEL, SOURCE, SUBJECT, attention_shapes, main, run, run_ok, scratch

LIBRARY = BIN.parent / "lib/libfake_cuda.so"
# With captions of 77 tokens, as the published models have.
TOKENIZER = SOURCE / "tests/parity/data/tokenizer_demo"
UNITS = {"bytes": 1, "byte": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


def bytes_of(number, unit):
    return float(number) * UNITS[unit]


def flags(model, *more):
    return [
        "--pretrained_model_name_or_path",
        model,
        "--instance_data_dir",
        SUBJECT,
        "--instance_prompt",
        "a sks bear",
        *more,
    ]


def dry_run(model, *more):
    """The memory, the phases {name: (bytes, kernels, waits)} and the text of a dry run."""
    output = run_ok("train_dreambooth_lora", *flags(model, "--dry_run", *more))
    memory = re.search(r"Memory = ([\d.]+) (\w+)", output)
    phases = {}
    for name, number, unit, counts in re.findall(
        r"^  (\S.*?) {2,}([\d.]+) (\w+)(?: +[\d.]+ \w?B)?((?: +\d+)*)$", output, re.M
    ):
        kernels, waits = map(int, counts.split() or (0, 0))
        phases[name] = (bytes_of(number, unit), kernels, waits)
    return bytes_of(*memory.groups()), phases, output


def full_size(folder):
    """Stable Diffusion 1.5 without its weights, which a dry run does not read."""
    configs = {
        "unet": json.loads((SOURCE / "benchmarks/sd15_unet.json").read_text()),
        "vae": {
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "sample_size": 512,
            "scaling_factor": 0.18215,
        },
        "text_encoder": {
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "vocab_size": 49408,
        },
    }
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    shutil.copytree(MODEL / "scheduler", folder / "scheduler")
    shutil.copyfile(MODEL / "model_index.json", folder / "model_index.json")
    return folder


def full_size_xl(folder):
    """SDXL without its weights."""
    small = SOURCE / "tests/parity/data/pipeline_xl"
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    text = {"projection_dim": 1280, "eos_token_id": 2, "vocab_size": 49408}
    changes = {
        "unet": {
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "sample_size": 1024,
        },
        "text_encoder": {
            **{**text, "hidden_size": 768, "intermediate_size": 3072},
            **{"num_attention_heads": 12, "num_hidden_layers": 12},
        },
        "text_encoder_2": {
            **{**text, "hidden_size": 1280, "intermediate_size": 5120},
            **{"num_attention_heads": 20, "num_hidden_layers": 32},
        },
    }
    for part, values in changes.items():
        config = folder / part / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
    for part in ["tokenizer", "tokenizer_2"]:
        shutil.rmtree(folder / part)
        shutil.copytree(TOKENIZER, folder / part)
    return folder


# The rows of the table in docs/training.md, with the most that they may take.
BASE = ["--device", "cuda", "--cache_latents", "--mixed_precision", "bf16", "--train_batch_size"]
ROWS = [([1], 4.5e9), ([1, "--cuda_graph", "off"], 4.5e9), ([1, "--gradient_checkpointing"], 3.5e9), ([4], 7.5e9)]


def test_stable_diffusion_15_at_full_size_fits_small_cards_and_the_guide_says_what_is_counted():
    guide = (SOURCE / "docs/training.md").read_text()
    with scratch() as folder:
        model = full_size(pathlib.Path(folder) / "model")
        for more, limit in ROWS:
            start = time.monotonic()
            memory, phases, output = dry_run(model, *BASE, *more)
            seconds = time.monotonic() - start
            shown = " ".join(map(str, ["--train_batch_size", *more]))
            print(f"  {shown}: {memory / 1e9:.1f} GB in {seconds:.0f} s")
            assert memory <= limit, output
            assert "Total optimization steps" in output and "lightlora.safetensors = " in output, output
            kernels = sum(phase[1] for phase in phases.values())
            row = f"| `{shown}` | {memory / 1e9:.1f} GB | {kernels} |"
            assert row in guide, (row, output)


# The rows of SDXL there: the most that they may take, the values that README's table says, and the file's size.
XL = [
    (["--resolution", 512, "--gradient_checkpointing"], 10e9, 336_000, 1.4e6),
    (["--resolution", 1024, "--gradient_checkpointing"], 12e9, 336_000, 1.4e6),
    (["--resolution", 1024, "--rank", 1, "--gradient_checkpointing"], 12e9, 84_000, 0.34e6),
    (["--resolution", 1024, "--variant", "classic", "--gradient_checkpointing"], 12e9, 5_806_080, 23.2e6),
]


def test_sdxl_at_full_size_trains_the_values_that_the_readme_says():
    guide, readme = ((SOURCE / name).read_text() for name in ("docs/training.md", "README.md"))
    row = next(line for line in readme.splitlines() if line.startswith("| SDXL, 560 layers |"))
    with scratch() as folder:
        model = full_size_xl(pathlib.Path(folder) / "model")
        for more, limit, values, size in XL:
            memory, phases, output = dry_run(model, *BASE, 1, *more)
            shown = " ".join(map(str, more))
            print(f"  SDXL {shown}: {memory / 1e9:.1f} GB")
            assert memory <= limit, output
            assert f"Trained values = {values}\n" in output and f"{values:,}" in row, (row, output)
            file = bytes_of(*re.search(r"lightlora\.safetensors = ([\d.]+) (\w+)\n", output).groups())
            assert abs(file / size - 1) < 0.15, (file, size)
            kernels = sum(phase[1] for phase in phases.values())
            line = f"| `{shown}` | {memory / 1e9:.1f} GB | {kernels} |"
            assert line in guide, (line, output)


def simulated_counts(folder, steps, *more):
    """What the simulated device, which computes, counts in a whole run."""
    counts = folder / f"{steps}.json"
    done = run(
        "train_dreambooth_lora",
        *flags(MODEL, "--device", "cuda", "--output_dir", folder / str(steps), "--max_train_steps", steps, *more),
        env={**os.environ, "LD_PRELOAD": str(LIBRARY), "FAKE_CUDA_COUNTS": str(counts)},
    )
    assert done.returncode == 0, done
    return json.loads(counts.read_text())


def test_kernels_waits_and_memory_are_those_of_a_run_that_computes():
    if not LIBRARY.exists():
        print("  skipped: no simulated device here")
        return
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for i, more in enumerate(
            [
                ["--cuda_graph", "off", "--cache_latents", "--train_batch_size", 2],
                ["--cuda_graph", "off", "--cache_latents", "--gradient_checkpointing", "--mixed_precision", "bf16"],
            ]
        ):
            _, phases, output = dry_run(MODEL, "--device", "cuda", *more)
            counts = [simulated_counts(folder / str(i), steps, *more) for steps in (2, 4)]
            for key, place in [("kernel_total", 1), ("wait_total", 2)]:
                counted = sum(phases[name][place] for name in ["batch", "forward", "backward", "optimizer"])
                ran = (counts[1][key] - counts[0][key]) / 2
                assert counted == ran, (more, key, counted, ran, output)
            peak = max(phase[0] for phase in phases.values())
            print(f"  tensors: counted {peak / 1e6:.1f} MB, allocated {counts[1]['peak_bytes'] / 1e6:.1f} MB")
            assert abs(peak / counts[1]["peak_bytes"] - 1) < 0.05, (more, peak, counts[1]["peak_bytes"])


def test_every_variant_is_counted_and_waits_once_in_a_step():
    variants = re.search(r"--variant (\w+(?:\|\w+)+)", run_ok("train_dreambooth_lora", "--help"))[1].split("|")
    assert len(variants) > 18, variants
    for variant in variants:
        _, phases, output = dry_run(MODEL, "--device", "cuda", "--variant", variant)
        waits = sum(phases[name][2] for name in ["batch", "forward", "backward", "optimizer"])
        assert waits == 1, (variant, output)


def test_an_optimizer_is_a_few_kernels_however_many_layers_there_are():
    for optimizer in ["adamw", "adafactor", "lion", "prodigy", "sgd"]:
        _, phases, output = dry_run(MODEL, "--device", "cuda", "--optimizer", optimizer, "--variant", "classic")
        # Two tensors for each layer, in a handful of shapes. What is copied with one kernel for a list counts for each here.
        assert 0 < phases["optimizer"][1] < 4 * 2 * len(attention_shapes()), (optimizer, output)


def test_the_memory_of_a_cpu_is_about_what_a_run_takes():
    with scratch() as folder:
        for more in [["--train_batch_size", 4], ["--train_batch_size", 4, "--gradient_checkpointing"]]:
            counted, _, output = dry_run(MODEL, "--device", "cpu", *more)
            output = run_ok(
                "train_dreambooth_lora",
                *flags(
                    MODEL,
                    "--device",
                    "cpu",
                    "--max_train_steps",
                    3,
                    "--output_dir",
                    pathlib.Path(folder) / str(len(more)),
                    *more,
                ),
            )
            taken = bytes_of(*re.search(r"peak memory: +([\d.]+) (\w+)", output).groups())
            print(f"  counted {counted / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB")
            assert 0.75 < counted / taken < 1.33, (more, counted, taken)


def test_attention_that_asks_for_fp32_costs_a_gpu_nothing():
    with scratch() as folder:
        results = []
        for upcast in [False, True]:
            model = full_size(pathlib.Path(folder) / str(upcast))
            config = json.loads((model / "unet/config.json").read_text())
            (model / "unet/config.json").write_text(json.dumps({**config, "upcast_attention": upcast}))
            memory, phases, _ = dry_run(model, *BASE, 1, "--variant", "classic")
            results.append((memory, phases))
        assert results[0] == results[1], results


def test_pictures_that_are_cut_anew_pass_the_autoencoder_together():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ["resize_source.png", "colour.jpg", "interlaced.png"]:
            shutil.copyfile(SOURCE / "tests/parity/data/images" / name, folder / name)

        def encoding(batch, *more):
            # Beside a run whose batches come from the cache.
            flags = ["--device", "cuda", "--instance_data_dir", folder, "--train_batch_size", batch, *more]
            anew, cached = (dry_run(MODEL, *flags, *cache)[1]["batch"] for cache in ([], ["--cache_latents"]))
            return anew[1] - cached[1]

        two, four = encoding(2), encoding(4)
        assert 0 < two == four, (two, four)
        assert encoding(4, "--batch_invariant") > 2 * four


def test_prompts_of_a_file_count_with_their_sizes():
    with scratch() as folder:
        file = pathlib.Path(folder) / "prompts.txt"
        peaks = {}
        for side in [64, 512]:
            file.write_text(f"a bear --w 32 --h 32\na bear --w {side} --h {side}\n")
            _, phases, output = dry_run(MODEL, "--device", "cuda", "--sample_prompts", file, "--validation_steps", 1)
            assert "validation pictures" in phases, output
            peaks[side] = phases["validation pictures"][0]
        assert peaks[512] > 2 * peaks[64], peaks


def test_auto_is_bf16_on_a_gpu_that_is_not_there_and_fp32_on_a_cpu():
    for device, word in [("cuda", "bf16"), ("cpu", "no")]:
        counted = [
            dry_run(MODEL, "--device", device, "--mixed_precision", precision)[1] for precision in ("auto", word)
        ]
        assert counted[0] == counted[1], (device, counted)


def test_a_dry_run_writes_nothing_and_names_steps_epochs_and_buckets():
    with scratch() as folder:
        output_dir = pathlib.Path(folder) / "out"
        _, _, output = dry_run(
            MODEL, "--device", "cuda", "--output_dir", output_dir, "--enable_bucket", "--num_train_epochs", 3
        )
        assert not output_dir.exists()
        pictures = len([path for path in SUBJECT.iterdir() if path.suffix in {".png", ".jpg"}])
        assert f"Num examples = {pictures}\n" in output, output
        assert re.search(r"Total optimization steps = \d+, \d+ each epoch, 3 epochs", output), output
        assert sum(map(int, re.findall(r"Bucket \d+x\d+ = (\d+) pictures", output))) == pictures, output


if __name__ == "__main__":
    main(globals())
