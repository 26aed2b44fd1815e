# SPDX-License-Identifier: Apache-2.0
"""The trainer on SDXL: another autoencoder, models of v with zero terminal SNR, several processes, a dry run, and what is
refused. That it learns what diffusers' script does is in sdxl_training_test.py."""

import json
import math
import pathlib
import re
import shutil

import processes_support
from processes_support import relative_difference
from support import SOURCE, SUBJECT, main, read_safetensors, run, run_ok, scratch

MODEL = SOURCE / "tests/parity/data/pipeline_xl"
TRAINER = "train_dreambooth_lora_sdxl"
NATIVE = "lightlora.safetensors"


def flags(output, *more, model=MODEL, batch=2, steps=2):
    return [
        *["--pretrained_model_name_or_path", model, "--instance_data_dir", SUBJECT, "--instance_prompt", "a sks bear"],
        *["--output_dir", output, "--variant", "classic", "--resolution", 16, "--train_batch_size", batch],
        *["--max_train_steps", steps, "--seed", 1, "--report_to", "none", "--device", "cpu", *more],
    ]


def train(output, *more, **options):
    run_ok(TRAINER, *flags(output, *more, **options))
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_another_autoencoder_makes_the_latents():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name in ["same", "scaled", "weights", "none"]:
            shutil.copytree(MODEL / "vae", folder / name)
        change(folder / "scaled/config.json", scaling_factor=0.2)
        file = folder / "weights/diffusion_pytorch_model.safetensors"
        header, data = read_safetensors(file)
        # The last byte of a number has its sign: latents of about the opposite sign.
        weight = header["quant_conv.weight"]
        assert weight["dtype"] == "F16"
        content = bytearray(file.read_bytes())
        begin, end = (offset + len(content) - len(data) for offset in weight["data_offsets"])
        for i in range(begin + 1, end, 2):
            content[i] ^= 0x80
        file.write_bytes(content)

        own = train(folder / "own")
        flag = "--pretrained_vae_model_name_or_path"
        assert train(folder / "a", flag, folder / "same") == own
        for name in ["scaled", "weights"]:
            other = train(folder / ("with-" + name), flag, folder / name)
            assert abs(other[0] / own[0] - 1) > 1e-5, (name, own, other)
        (folder / "none/config.json").unlink()
        for name, got in [("none", "one without"), ("nowhere", "nothing there")]:
            done = run(TRAINER, *flags(folder / "x", flag, folder / name))
            expected = f"expected a folder with an autoencoder's config.json for {flag}, got {got}"
            assert done.returncode == 1 and expected in done.stderr and done.stderr.count("\n") == 1, done


def test_edm_is_refused_with_the_reason():
    with scratch() as folder:
        done = run(TRAINER, *flags(pathlib.Path(folder) / "x", "--do_edm_style_training"))
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        assert "'--do_edm_style_training' is not offered: models of that kind (Playground v2.5)" in done.stderr, done


# The flags of diffusers 0.42's train_dreambooth_lora_sdxl.py.
FLAGS_OF_DIFFUSERS = """pretrained_model_name_or_path pretrained_vae_model_name_or_path revision variant dataset_name
    dataset_config_name instance_data_dir cache_dir image_column caption_column repeats class_data_dir instance_prompt
    class_prompt validation_prompt num_validation_images validation_epochs do_edm_style_training
    with_prior_preservation prior_loss_weight num_class_images output_dir output_kohya_format seed resolution
    center_crop random_flip train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps
    gradient_checkpointing learning_rate text_encoder_lr scale_lr lr_scheduler snr_gamma lr_warmup_steps lr_num_cycles
    lr_power dataloader_num_workers optimizer use_8bit_adam adam_beta1 adam_beta2 prodigy_beta3 prodigy_decouple
    adam_weight_decay adam_weight_decay_text_encoder adam_epsilon prodigy_use_bias_correction
    prodigy_safeguard_warmup max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to
    mixed_precision prior_generation_precision local_rank enable_xformers_memory_efficient_attention
    enable_npu_flash_attention rank lora_dropout use_dora image_interpolation_mode""".split()


def test_every_flag_of_diffusers_script_is_understood_or_answered_with_a_reason():
    known = set(re.findall(r"--(\w+)", run_ok(TRAINER, "--help")))
    absent = [flag for flag in FLAGS_OF_DIFFUSERS if flag not in known]
    assert "use_dora" in absent and len(absent) < 25, absent
    for flag in absent:
        done = run(TRAINER, *flags("not-written", f"--{flag}"))
        assert done.returncode == 2 and f"'--{flag}' is not offered: " in done.stderr, done
    done = run(TRAINER, *flags("not-written", "--variant", "fp16"))
    assert done.returncode == 2 and "half-precision files of a folder are used" in done.stderr, done
    # As diffusers' own command lines have it.
    with scratch() as folder:
        train(pathlib.Path(folder) / "x", "--optimizer", "AdamW", steps=1)


def test_a_model_of_v_with_zero_terminal_snr_learns_also_from_pure_noise():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        model = folder / "model"
        shutil.copytree(MODEL, model)
        # Of four timesteps the last is pure noise, with a signal-to-noise ratio of zero to divide by.
        change(
            model / "scheduler/scheduler_config.json",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            num_train_timesteps=4,
        )
        for more in [["--snr_gamma", 5], ["--debiased_estimation_loss"], []]:
            losses = train(folder / str(len(more)), *more, model=model, steps=10)
            assert len(losses) == 10 and all(math.isfinite(loss) and 0 < loss < 100 for loss in losses), (more, losses)


def test_two_processes_learn_what_one_learns():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, limit, more in [
            ("invariant", 0, ["--batch_invariant"]),
            ("usual", 1e-5, ["--optimizer", "sgd", "--learning_rate", "0.1"]),
        ]:
            more = ["--train_text_encoder", *more]
            train(folder / f"{name}-1", *more, batch=4, steps=4)
            processes_support.run_ok(TRAINER, 2, lambda rank: flags(folder / f"{name}-2", *more, batch=2, steps=4))
            error = relative_difference(folder / f"{name}-1" / NATIVE, folder / f"{name}-2" / NATIVE)
            print(f"{name}: relative difference {error:.1e}")
            assert error <= limit, (name, error)


def test_a_dry_run_counts_what_a_run_trains():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        more = ["--train_text_encoder"]
        dry = run_ok(TRAINER, *flags(folder / "dry", "--dry_run", *more))
        assert not (folder / "dry").exists()
        ran = run_ok(TRAINER, *flags(folder / "ran", *more))
        values = [re.search(r"Trained values = (\d+)\n", text)[1] for text in (dry, ran)]
        assert values[0] == values[1] and int(values[0]) > 0, values
        bytes_there = (folder / "ran" / NATIVE).stat().st_size
        number, unit = re.search(re.escape(NATIVE) + r" = ([\d.]+) (\w+)\n", dry).groups()
        counted = float(number) * {"bytes": 1, "KB": 1e3, "MB": 1e6}[unit]
        assert abs(counted / bytes_there - 1) < 0.05, (counted, bytes_there)


main(globals())
