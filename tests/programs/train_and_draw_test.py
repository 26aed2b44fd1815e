# SPDX-License-Identifier: Apache-2.0
"""The trainer and the generator, from the command line."""

import json
import math
import pathlib
import shutil

from support import (
    BIN,
    LATENTS,
    MODEL,
    SUBJECT,
    TOKENS,
    attention_shapes,
    distance,
    draw,
    main,
    read_latents,
    read_safetensors,
    run,
    run_ok,
    scratch,
    subject_flags,
    train,
)

FILES = ["lightlora.safetensors", "pytorch_lora_weights.safetensors"]


def test_equal_runs_give_equal_bytes_and_another_seed_does_not():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
            train(folder / name, "--seed", seed)
        for name in FILES:
            a, b, c = [(folder / x / name).read_bytes() for x in "abc"]
            assert a == b, name
            assert a != c, name


def test_native_and_exported_files_draw_the_same_picture():
    prompt = ["--prompt", "a sks bear on a blue background", "--seed", 3]
    with scratch() as folder:
        folder = pathlib.Path(folder)
        draw(folder / "base.png", *prompt)
        base = drawn_latents(folder, prompt)
        for variant in ["classic", "light", "fused"]:
            out = folder / variant
            train(out, "--variant", variant, "--network_alpha", 8, "--rank", 2, "--learning_rate", "0.02")
            first, second = [drawn_latents(folder, [*prompt, "--lora", out / name]) for name in FILES]
            # Two orders of the same fp32 sums.
            assert distance(first, second) < 1e-4 * distance(first, base), variant
            assert distance(first, base) > 1e-2, variant
            off = drawn_latents(folder, [*prompt, "--lora", f"{out / FILES[0]}:0"])
            assert off == base, variant


def drawn_latents(folder, arguments):
    draw(folder / "x.png", *arguments, "--save_latents", folder / "latents.safetensors")
    shape, values = read_latents(folder / "latents.safetensors")["latents"]
    assert shape == LATENTS
    return values


def test_a_file_is_gone_on_from_and_its_rank_relaxed():
    prompt = ["--prompt", "a sks bear on a blue background", "--seed", 3]
    with scratch() as folder:
        folder = pathlib.Path(folder)
        base = drawn_latents(folder, prompt)
        for variant in ["light", "classic"]:
            one = folder / f"{variant}-one"
            train(one, "--variant", variant, "--rank", 1, "--network_alpha", 2, "--learning_rate", "0.005", steps=5)
            start = drawn_latents(folder, [*prompt, "--lora", one / FILES[0]])
            assert distance(start, base) > 1e-2, variant

            # At a rate of nothing both ways give back what they began with, from either file.
            for name, relax in [("same", []), ("still", ["--relax_rank", 3])]:
                train(
                    folder / f"{variant}-{name}",
                    "--init_from",
                    one / FILES[0],
                    *relax,
                    "--learning_rate",
                    "1e-30",
                    steps=1,
                )
                for file in FILES:
                    now = drawn_latents(folder, [*prompt, "--lora", folder / f"{variant}-{name}" / file])
                    assert distance(now, start) < 1e-4 * distance(start, base), (variant, name, file)

            # The file's part stays as it was, the new ranks learn, and a resumed run ends with the same bytes.
            more = folder / f"{variant}-more"
            relaxed = ["--init_from", one / FILES[0], "--relax_rank", 3, "--checkpointing_steps", 2]
            train(more, *relaxed, steps=4)
            before, after = read_latents(one / FILES[0]), read_latents(more / FILES[0])
            assert before.keys() == after.keys()
            for name, (shape, values) in after.items():  # layers of one shape are stacked
                layers, rows, columns = shape
                own = before[name][1]
                if name.endswith("down"):
                    assert rows == 4 and before[name][0] == [layers, 1, columns], (name, shape)
                    kept = [values[layer * 4 * columns :][:columns] for layer in range(layers)]
                    assert all(part == own[layer * columns :][:columns] for layer, part in enumerate(kept)), name
                else:
                    assert columns == 4 and before[name][0] == [layers, rows, 1], (name, shape)
                    assert any(value for index, value in enumerate(values) if index % 4), name
            whole = (more / FILES[0]).read_bytes()
            train(more, *relaxed, "--resume_from_checkpoint", "checkpoint-2", steps=4)
            assert (more / FILES[0]).read_bytes() == whole, variant


def test_what_cannot_be_gone_on_from_is_one_clear_line():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "fused", "--variant", "fused", steps=1)
        for status, expected, flags in [
            (2, "--relax_rank: expected --init_from", ["--relax_rank", 2]),
            (1, "expected a light or classic adapter", ["--init_from", folder / "fused" / FILES[0], "--relax_rank", 2]),
            (
                1,
                "if and only if --train_text_encoder",
                ["--init_from", folder / "fused" / FILES[0], "--train_text_encoder"],
            ),
        ]:
            done = run("train_dreambooth_lora", *subject_flags(folder / "out"), "--device", "cpu", *flags)
            assert done.returncode == status and len(done.stderr.splitlines()) == 1, done
            assert expected in done.stderr, (expected, done.stderr)


def test_split_rank_cuts_the_exported_file():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        train(folder / "full", "--variant", "fused")
        train(folder / "cut", "--variant", "fused", "--split_rank", 3)
        ranks = set()
        for name in ["full", "cut"]:
            header, _ = read_safetensors(folder / name / FILES[1])
            ranks.add((name, *{v["shape"][0] for k, v in header.items() if k.endswith("down.weight")}))
        assert ranks == {("full", 50), ("cut", 3)}, ranks
        assert (folder / "full" / FILES[0]).read_bytes() == (folder / "cut" / FILES[0]).read_bytes()


def test_native_file_is_compact_and_has_no_lora_in_its_names():
    with scratch() as folder:
        train(folder)
        header, data = read_safetensors(pathlib.Path(folder) / FILES[0])
        metadata = header.pop("__metadata__")
        assert metadata["format"] == "lightlora" and metadata["instance_prompt"] == "a sks bear"
        assert not any("lora" in name for name in header), list(header)
        # Rank 4 in fp32, between bases of up to 100 inputs and 50 outputs.
        values = sum(4 * (min(50, out) + min(100, inside)) for out, inside in attention_shapes())
        assert len(data) == 4 * values, (values, len(data))


def test_saved_latents_restart_the_same_picture():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        from support import write_safetensors

        values = [((i * 2654435761) % 1000) / 500 - 1 for i in range(2 * math.prod(LATENTS))]
        write_safetensors(folder / "start.safetensors", {"latents": ([2, *LATENTS[1:]], values)})
        arguments = ["--prompt", "a red apple", "--initial_latents", folder / "start.safetensors"]
        draw(folder / "x.png", *arguments, "--seed", 1)
        draw(folder / "y.png", *arguments, "--seed", 2)
        pictures = sorted(path.name for path in folder.glob("*.png"))
        assert pictures == ["x-0.png", "x-1.png", "y-0.png", "y-1.png"], pictures
        pixels = [png_pixels(folder / name) for name in pictures]
        assert pixels[0] == pixels[2] and pixels[1] == pixels[3] and pixels[0] != pixels[1]


def png_pixels(path):
    """The compressed pixels: everything but the text chunks, which name the settings."""
    data, at, kept = path.read_bytes(), 8, b""
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            kept += data[at + 8 : at + 8 + size]
        at += size + 12
    assert kept
    return kept


def test_png_carries_its_settings():
    with scratch() as folder:
        picture = pathlib.Path(folder) / "x.png"
        draw(picture, "--prompt", "a red apple", "--negative_prompt", "blue", "--seed", 5)
        data = picture.read_bytes()
        for text in [b"parameters\0a red apple\nNegative prompt: blue\nSteps: 4", b"Seed: 5", b"Size: 64x64"]:
            assert text in data, text


def test_print_tokens():
    output = run_ok(
        "text_to_image", "--pretrained_model_name_or_path", MODEL, "--prompt", "a red apple " * 40, "--print_tokens"
    )
    chunks = [json.loads(line) for line in output.splitlines()]
    assert len(chunks) >= 2 and all(len(chunk) == TOKENS for chunk in chunks)


def test_files_that_are_no_pictures_are_named_and_left_out():
    with scratch() as folder:
        pictures = pathlib.Path(folder) / "pictures"
        shutil.copytree(SUBJECT, pictures)
        (pictures / "notes.txt").write_text("bought in May\n")
        output = run_ok(
            "train_dreambooth_lora",
            "--pretrained_model_name_or_path",
            MODEL,
            "--instance_data_dir",
            pictures,
            "--instance-prompt",
            "a sks bear",
            "--output_dir",
            pathlib.Path(folder) / "out",
            "--max_train_steps",
            1,
            "--device",
            "cpu",
        )
        assert "'notes.txt'" in output and "is left out: it is a text file" in output
        assert "Num examples = 6" in output


def test_both_zero_warns_and_does_not_move():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        output = train(folder / "out", "--init", "both_zero")
        assert "saddle" in output
        _, data = read_safetensors(folder / "out" / FILES[0])
        assert not any(data)


def test_precisions_and_schedules():
    with scratch() as folder:
        out = pathlib.Path(folder) / "out"
        output = train(
            out,
            "--mixed_precision",
            "bf16",
            "--lr_scheduler",
            "cosine",
            "--lr_warmup_steps",
            1,
            "--gradient_accumulation_steps",
            2,
        )
        assert "Total train batch size = 4" in output
        header, _ = read_safetensors(out / FILES[0])
        assert {v["dtype"] for k, v in header.items() if k != "__metadata__"} == {"F32"}


def test_help_and_version():
    for program in ["train_dreambooth_lora", "text_to_image"]:
        text = run_ok(program, "--help")
        assert "--pretrained_model_name_or_path" in text and "xample" in text
        assert run_ok(program, "--version").strip()


def test_every_program_refuses_what_it_does_not_know():
    programs = ["before_after", "compare_hypernetwork", "compare_variants", "convert_lora", "file_sizes_benchmark"]
    programs += ["generate_benchmark", "make_dataset", "personalize", "pretrain", "step_benchmark", "text_to_image"]
    programs += ["textual_inversion", "train_dreambooth_lora", "train_hypernetwork"]
    for program in programs:
        if not (BIN / program).exists():
            continue
        assert "Usage: " in run_ok(program, "--help"), program
        done = run(program, "--no_such_flag")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, (program, done)
        assert "unknown flag '--no_such_flag'" in done.stderr, (program, done.stderr)


main(globals())
