# SPDX-License-Identifier: Apache-2.0
"""Training by several processes: the same weights as by one."""

import json
import os
import pathlib
import shutil
import struct

from processes_support import Processes, relative_difference, run_ok, training_flags
from support import SOURCE, main, read_safetensors, scratch, word_flags
from support import run_ok as run_alone

TRAINER = "train_dreambooth_lora"
NATIVE = "lightlora.safetensors"


def train(folder, size, total_batch, *more, steps=20):
    flags = training_flags(folder, *more, steps=steps, batch=total_batch // size)
    if size == 1:
        return run_alone(TRAINER, *flags)
    return run_ok(TRAINER, size, lambda rank: flags)


def test_processes_that_share_a_batch_learn_what_one_learns():
    """AdamW turns rounding into steps of full size wherever a gradient is about zero, so the weights are
    compared to the bit where samples are computed one by one, and after plain SGD where they are not."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, flags in {
            "invariant": ["--batch_invariant"],
            "usual": ["--optimizer", "sgd", "--learning_rate", 1],
        }.items():
            for size in (1, 2, 4):
                output = folder / f"{name}-{size}"
                text = train(output, size, 4, *flags)
                assert f"Num processes = {size}\n" in text and "Total train batch size = 4\n" in text, text
                difference = relative_difference(folder / f"{name}-1" / NATIVE, output / NATIVE)
                print(f"{name}, {size} processes, 20 steps: relative difference {difference:.2g}")
                assert difference <= (0 if name == "invariant" else 1e-5), difference


def test_two_processes_learn_the_bytes_of_one_that_accumulates_two_batches():
    """With the default optimizer: the exchange adds nothing of its own."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "two", 2, 4, steps=5)
        train(folder / "one", 1, 2, "--gradient_accumulation_steps", 2, steps=5)
        assert (folder / "one" / NATIVE).read_bytes() == (folder / "two" / NATIVE).read_bytes()


def test_repeated_runs_are_bit_identical():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ("a", "b"):
            train(folder / name, 2, 4, "--variant", "classic", steps=8)
        assert (folder / "a" / NATIVE).read_bytes() == (folder / "b" / NATIVE).read_bytes()


def test_a_word_that_processes_learn_is_the_one_that_one_learns():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, more, limit in (
            ("invariant", ["--learning_rate", 0.02, "--batch_invariant"], 0),
            ("usual", ["--learning_rate", 1, "--optimizer", "sgd"], 1e-5),
        ):
            words = []
            for size in (1, 2):
                output = folder / f"{name}-{size}"
                flags = [
                    *word_flags(output),
                    "--device",
                    "cpu",
                    "--report_to",
                    "none",
                    "--train_batch_size",
                    2 // size,
                    "--max_train_steps",
                    5,
                    *more,
                ]
                text = run_ok("textual_inversion", size, lambda rank: flags)
                assert f"Num processes = {size}\n" in text and "Total train batch size = 2\n" in text, text
                words.append(output / "learned_embeds.safetensors")
            difference = relative_difference(*words)
            print(f"textual_inversion, {name}: relative difference {difference:.2g}")
            assert difference <= limit, difference


def tiny_pretraining():
    """The bundled model's configuration, cut down to a second of work."""
    config = json.loads((SOURCE / "examples/stable_diffusion/research/pretraining/base.json").read_text())
    dataset = config["dataset"]
    dataset.update(size=16, emoji=dataset["emoji"][:3], subjects=dataset["subjects"][:1], extra_groups=[])
    levels = len(config["vae"]["model"]["block_out_channels"])
    config["vae"]["model"].update(block_out_channels=[8] * levels, norm_num_groups=2, sample_size=16)
    for stage in ("vae", "decoder", "diffusion"):
        config[stage].update(
            steps=8,
            batch=4,
            warmup_steps=2,
            validate_every=100,
            save_every=100,
            validation_pictures=2,
            validation_samples=2,
            validation_sampling_steps=2,
            muon=False,  # it magnifies what rounding leaves of directions that are not there
        )
    config["diffusion"]["latent_pool"] = 16
    config["text_encoder"]["model"].update(
        hidden_size=16, intermediate_size=32, max_position_embeddings=16, num_attention_heads=2, num_hidden_layers=1
    )
    config["unet"]["model"].update(
        block_out_channels=[8] * (len(config["unet"]["model"]["block_out_channels"]) - 1) + [16],
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=16,
        sample_size=16 >> (levels - 1),
    )
    return config


def test_a_model_that_processes_pretrain_is_the_one_that_one_pretrains():
    """Values, moments and averages in fp32. Each stage begins at what one process has made so far."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        config, one, two = folder / "tiny.json", folder / "one", folder / "two"
        config.write_text(json.dumps(tiny_pretraining()))
        run_alone("make_dataset", "--config", config, "--output_dir", folder / "data")

        def pretrain(stage, size, output):
            flags = [
                "--config",
                config,
                "--dataset_dir",
                folder / "data",
                "--stage",
                stage,
                "--output_dir",
                output,
                "--mixed_precision",
                "no",
            ]
            return run_ok("pretrain", size, lambda rank: flags)

        pretrain("tokenizer", 1, one)
        for stage in ("vae", "decoder", "diffusion"):
            shutil.rmtree(two, ignore_errors=True)
            shutil.copytree(one, two)
            for size, output in ((1, one), (2, two)):
                assert f"{stage}: 8 steps done" in pretrain(stage, size, output)
            state = f"runs/{stage}/checkpoint-8/training_state.safetensors"
            difference = relative_difference(one / state, two / state)
            print(f"pretrain, {stage}: relative difference {difference:.2g}")
            assert difference <= 1e-5, difference


def test_one_process_opens_no_connection_and_starts_no_thread():
    """What is in use while it trains; two processes, which have both, show that this is seen."""
    used = {}
    for size in (1, 2):
        with scratch() as folder:
            group = Processes(TRAINER, size, lambda rank: training_flags(folder, steps=100000))
            group.wait_for_line(0, "Steps 1/")
            process = pathlib.Path(f"/proc/{group.processes[0].pid}")
            links = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            used[size] = (sum(link.startswith("socket:") for link in links), len(list((process / "task").iterdir())))
            group.end()
    print(f"sockets and threads: {used[1]} of one process, {used[2]} of each of two")
    assert used[1] == (0, 1) and used[2][0] > 0 and used[2][1] > 1, used


def overwrite(path, **values):
    """Puts other bytes in the place of a file's tensors, whose names have `_` for `.` here."""
    header, _ = read_safetensors(path)
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for name, value in values.items():
        first, last = header[name.replace("_", ".")]["data_offsets"]
        assert len(value) == last - first, name
        data[start + first : start + last] = value
    path.write_bytes(data)


def test_an_overflow_on_one_rank_is_one_on_all():
    """fp16 with a loss scale at which rank 1's sample overflows and rank 0's does not: both leave the step out and
    halve the scale, and go on as one process that has both samples."""
    with scratch() as folder:
        folder = pathlib.Path(folder)
        begin = folder / "begin"
        # Min-SNR weights make the gradients of samples differ by orders of magnitude.
        fp16 = [
            "--mixed_precision",
            "fp16",
            "--batch_invariant",
            "--resolution",
            32,
            "--snr_gamma",
            5,
            "--checkpointing_steps",
            1,
        ]
        run_alone(TRAINER, *training_flags(begin, *fp16, "--learning_rate", 1e-30, steps=1))  # moves nothing

        def go_on(name, size, *, step, until, batch):
            """From the beginning's weights at another step and scale."""
            shutil.copytree(begin, folder / name)
            checkpoint = folder / name / "checkpoint-1"
            overwrite(
                checkpoint / "training_state.safetensors",
                steps=struct.pack("<3q", step, 0, 0),
                scaler_scale=struct.pack("<f", 2**25),
            )
            flags = training_flags(
                folder / name, *fp16, "--resume_from_checkpoint", checkpoint, steps=until, batch=batch
            )
            return run_ok(TRAINER, size, lambda rank: flags)

        assert "overflowed" not in go_on("rank 0's sample", 1, step=8, until=9, batch=1)
        states = []
        for size in (1, 2):
            text = go_on(f"by-{size}", size, step=4, until=12, batch=2 // size)  # so many halvings that one is taken
            assert "step 5 overflowed fp16 and was skipped; the loss scale is now 16777216\n" in text, text
            states.append(read_safetensors(folder / f"by-{size}/checkpoint-12/training_state.safetensors")[1])
        assert states[0] == states[1]
        assert (folder / "by-1" / NATIVE).read_bytes() == (folder / "by-2" / NATIVE).read_bytes()
        assert (folder / "by-1" / NATIVE).read_bytes() != (begin / NATIVE).read_bytes(), "no step was taken"


if __name__ == "__main__":
    main(globals())
