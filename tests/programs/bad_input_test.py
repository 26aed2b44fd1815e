# SPDX-License-Identifier: Apache-2.0
"""Bad input gives one clear line on standard error, exit status 1 or 2, and no file."""

import pathlib
import shutil

from support import MODEL, SUBJECT, main, run, scratch, train, write_safetensors


def fails(status, *expected, program, arguments):
    """The program ends with `status` and one line that holds every expected text."""
    done = run(program, *arguments)
    lines = done.stderr.splitlines()
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1 and done.stderr.endswith("\n"), done.stderr
    for text in expected:
        assert text in lines[0], f"expected {text!r} in {lines[0]!r}"


def train_arguments(folder, **changes):
    flags = {
        "pretrained_model_name_or_path": MODEL,
        "instance_data_dir": SUBJECT,
        "instance_prompt": "a sks bear",
        "output_dir": pathlib.Path(folder) / "out",
        "max_train_steps": 1,
        "device": "cpu",
    }
    flags.update(changes)
    return [part for name, value in flags.items() for part in ("--" + name, value)]


def train_fails(status, *expected, extra=(), **changes):
    with scratch() as folder:
        fails(
            status, *expected, program="train_dreambooth_lora", arguments=[*train_arguments(folder, **changes), *extra]
        )
        output = pathlib.Path(folder) / "out"
        assert not output.exists() or not any(output.iterdir()), "a file was left behind"


def draw_fails(status, *expected, extra=(), model=MODEL):
    with scratch() as folder:
        output = pathlib.Path(folder) / "picture.png"
        fails(
            status,
            *expected,
            program="text_to_image",
            arguments=[
                "--pretrained_model_name_or_path",
                model,
                "--prompt",
                "a red apple",
                "--num_inference_steps",
                1,
                "--device",
                "cpu",
                "--output",
                output,
                *extra,
            ],
        )
        assert not output.exists(), "a picture was left behind"


def test_missing_folders():
    train_fails(1, "'no/such/model'", "hint", pretrained_model_name_or_path="no/such/model")
    train_fails(1, "'no/such/pictures'", "nothing of that name", instance_data_dir="no/such/pictures")
    draw_fails(1, "'no/such/model'", model="no/such/model")


def test_missing_part_of_the_model():
    with scratch() as folder:
        model = pathlib.Path(folder) / "model"
        shutil.copytree(MODEL, model)
        shutil.rmtree(model / "vae")
        draw_fails(1, "vae", "hint", model=model)


def test_truncated_safetensors():
    with scratch() as folder:
        model = pathlib.Path(folder) / "model"
        shutil.copytree(MODEL, model)
        weights = model / "unet/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        draw_fails(1, str(weights), "cut off", model=model)


def test_empty_folder_and_text_called_png():
    with scratch() as folder:
        train_fails(1, "expected a folder with pictures", instance_data_dir=folder)
        (pathlib.Path(folder) / "photo.png").write_text("not a picture at all\n")
        train_fails(1, "photo.png", "text", instance_data_dir=folder)


def test_bad_values():
    train_fails(2, "--rank", "0", rank=0)
    train_fails(2, "--variant", "classic, diag_oft, full, fused", variant="lihgt")
    train_fails(2, "--train_batch_size", train_batch_size=0)
    train_fails(2, "--learning_rate", learning_rate=0)
    train_fails(2, "rank", "200", rank=200)
    train_fails(2, "--init", "fused", variant="fused", init="down_zero")
    train_fails(2, "--split_rank", "--variant fused", split_rank=2)


def test_unknown_and_missing_flags():
    train_fails(2, "--learning_rat", "--learning_rate", extra=["--learning_rat", "1"])
    draw_fails(2, "--promt", "--prompt", extra=["--promt", "x"])
    fails(
        2, "--instance_data_dir", program="train_dreambooth_lora", arguments=["--pretrained_model_name_or_path", MODEL]
    )


def test_target_that_matches_nothing():
    train_fails(1, "target 'to_qq'", "nearest names are 'to_q'", target_modules="to_qq")


def test_lora_of_another_model():
    with scratch() as folder:
        other = pathlib.Path(folder) / "other.safetensors"
        layer = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q.lora"
        write_safetensors(other, {layer + ".down.weight": ([1, 4], [0] * 4), layer + ".up.weight": ([4, 1], [0] * 4)})
        draw_fails(1, str(other), "down_blocks.7", "another model", extra=["--lora", other])
        write_safetensors(other, {"something.else": ([1], [0])})
        draw_fails(1, str(other), "something.else", extra=["--lora", other])
        out = pathlib.Path(folder) / "out"
        train(out, steps=1)
        native = out / "lightlora.safetensors"
        text = native.read_bytes().replace(b'"0.out":"', b'"0.out":"1')
        native.write_bytes(text)
        draw_fails(1, str(native), extra=["--lora", native])


def test_bad_latents():
    with scratch() as folder:
        latents = pathlib.Path(folder) / "latents.safetensors"
        write_safetensors(latents, {"noise": ([1], [0])})
        draw_fails(1, str(latents), "'latents'", extra=["--initial_latents", latents])


def test_output_folder_that_does_not_exist():
    fails(
        1,
        "no/such/folder",
        program="text_to_image",
        arguments=[
            "--pretrained_model_name_or_path",
            MODEL,
            "--prompt",
            "x",
            "--device",
            "cpu",
            "--num_inference_steps",
            1,
            "--output",
            "no/such/folder/x.png",
        ],
    )


main(globals())
