# SPDX-License-Identifier: Apache-2.0
"""train_hypernetwork and personalize on the bundled model: what they write, that a pause is no pause, and what is said of
wrong input."""

import json
import pathlib
import struct
import zlib

from support import MODEL, SOURCE, main, read_safetensors, run, run_ok, scratch

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def png_bytes(width, height, pixels):
    """An RGB picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def identities(folder, count=3, pictures=2):
    """Things that are squares of one colour on backgrounds of another."""
    for i in range(count):
        (folder / f"thing_{i}").mkdir(parents=True)
        captions = []
        for k in range(pictures):
            pixels = bytearray()
            for y in range(64):
                for x in range(64):
                    inside = 16 <= x < 48 and 16 <= y < 48
                    pixels += bytes(COLORS[i % 3] if inside else (90 * k, 60 * i, 120))
            (folder / f"thing_{i}/{k}.png").write_bytes(png_bytes(64, 64, bytes(pixels)))
            captions.append(json.dumps({"file_name": f"{k}.png", "text": "a sks thing"}))
        (folder / f"thing_{i}/metadata.jsonl").write_text("\n".join(captions) + "\n")
    return folder


SMALL = ["--width", 16, "--heads", 2, "--encoder_layers", 1, "--decoder_layers", 1, "--target_modules", "attn2.to_v"]


def learn(folder, output, *more, steps=4):
    return run_ok(
        "train_hypernetwork",
        *["--pretrained_model_name_or_path", MODEL, "--identities_dir", folder / "things"],
        *["--instance_prompt", "a sks thing", "--output_dir", folder / output, "--device", "cpu"],
        *["--target_steps", 2, "--targets_at_once", 2, "--target_pictures", 1, "--pictures_per_identity", 1],
        *["--train_batch_size", 2, "--max_train_steps", steps, "--lr_warmup_steps", 0, "--lr_decay_steps", 0],
        *["--checkpointing_steps", 2, "--validation_steps", 100, *SMALL, *more],
    )


def test_from_pictures_of_many_things_to_pictures_of_one():
    with scratch() as name:
        folder = pathlib.Path(name)
        identities(folder / "things")
        text = learn(folder, "whole", "--validation_dir", folder / "things")
        assert "4 steps done" in text and "hypernetwork.safetensors" in text, text
        log = [json.loads(line) for line in (folder / "whole/runs/hypernetwork/metrics.jsonl").read_text().splitlines()]
        shown = [row for row in log if "validation_loss_of_shuffled" in row]
        assert shown and {"validation_loss", "validation_loss_of_mean", "validation_loss_of_base"} <= shown[-1].keys()
        assert (folder / "whole/samples/step-4.png").exists()
        # A run that stops and goes on ends with the same bytes.
        learn(folder, "half", "--validation_dir", folder / "things", steps=2)
        learn(folder, "half", "--validation_dir", folder / "things")
        for file in ["hypernetwork.safetensors", "mean_adapter.safetensors"]:
            assert (folder / "half" / file).read_bytes() == (folder / "whole" / file).read_bytes(), file

        picture = folder / "things/thing_0/0.png"
        flags = ["--pretrained_model_name_or_path", MODEL, "--hypernetwork", folder / "whole", "--image", picture]
        flags += ["--prompt", "a sks thing on a blue background", "--device", "cpu", "--num_images_per_prompt", 1]
        text = run_ok("personalize", *flags, "--max_train_steps", 2, "--rank", 2, "--output_dir", folder / "one")
        for part in ["loading:", "prediction:", "tuning:", "drawing:", "in all:"]:
            assert part in text, text
        check_picture(folder)
        predicted, _ = read_safetensors(folder / "one/prediction.safetensors")
        tuned, _ = read_safetensors(folder / "one/tuned/lightlora.safetensors")
        assert predicted.keys() - {"__metadata__"}, predicted
        # The tuning adds a rank of its own to the predicted one.
        ranks = [
            {min(item["shape"]) for key, item in file.items() if key != "__metadata__"} for file in [predicted, tuned]
        ]
        assert ranks == [{1}, {3}], ranks
        for file in ["prediction.safetensors", "tuned/lightlora.safetensors"]:
            run_ok("convert_lora", "--input", folder / "one" / file, "--inspect")

        check_drawing(folder, flags)
        refused = run("personalize", *flags, "--output_dir", folder / "one")
        assert refused.returncode == 1 and "--overwrite_output_dir" in refused.stderr, refused
        check_errors(folder, flags)


def pixels(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def check_picture(folder):
    """text_to_image draws the same picture from the PNG's own text and the adapters."""
    adapters = folder / "one/tuned/lightlora.safetensors"
    again = folder / "again.png"
    model = ["--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--dtype", "fp32"]
    run_ok("text_to_image", *model, "--from_png", folder / "one/0.png", "--lora", adapters, "--output", again)
    ours, theirs = (pixels(path) for path in (folder / "one/0.png", again))
    # Adapters beside the weights, and in them.
    assert len(ours) == len(theirs) and max(abs(a - b) for a, b in zip(ours, theirs)) <= 2


def check_drawing(folder, flags):
    """What text_to_image can be told of a picture, and several of them: each has a seed of its own."""
    more = [
        "--negative_prompt",
        "a ghost",
        "--height",
        32,
        "--width",
        48,
        "--scheduler",
        "euler",
        "--guidance_scale",
        3,
    ]
    more += ["--num_inference_steps", 3, "--seed", 5, "--num_images_per_prompt", 2, "--max_train_steps", 0]
    text = run_ok("personalize", *flags, *more, "--output_dir", folder / "other")
    assert "tuning:" not in text and text.count("picture:") == 2, text
    model = ["--pretrained_model_name_or_path", MODEL, "--device", "cpu", "--dtype", "fp32", "--prompt_syntax", "plain"]
    more[more.index("--seed") + 1] = 6
    like = [item for item in more if item not in ("--max_train_steps", 0)]
    like[like.index("--num_images_per_prompt") + 1] = 1
    output = folder / "like.png"
    lora = folder / "other/prediction.safetensors"
    prompt = flags[flags.index("--prompt") + 1]
    run_ok("text_to_image", *model, "--lora", lora, "--prompt", prompt, *like, "--output", output)
    ours, theirs = pixels(folder / "other/1.png"), pixels(output)
    assert len(ours) == 3 * 32 * 48 and max(abs(a - b) for a, b in zip(ours, theirs)) <= 2
    refused = run("personalize", *flags, "--height", 33, "--output_dir", folder / "odd")
    assert refused.returncode == 2 and "--height and --width: expected multiples of" in refused.stderr, refused
    new = run_ok("personalize", *flags, "--seed", -1, "--max_train_steps", 0, "--output_dir", folder / "new")
    assert "seed: " in new, new


def test_text_encoders_of_both_families():
    with scratch() as name:
        folder = pathlib.Path(name)
        identities(folder / "things")
        for model, encoders in [(MODEL, 1), (SOURCE / "tests/parity/data/pipeline_xl", 2)]:
            output = f"of_{encoders}"
            more = ["--pretrained_model_name_or_path", model, "--train_text_encoder", "--grid", 4]
            more += ["--targets_dir", folder / output / "shared", "--gradient_checkpointing"]
            more += ["--validation_steps", 0 if encoders == 1 else 1]
            text = learn(folder, output, *more, steps=1)
            assert text.count("text_encoder") >= encoders, text
            # Other networks of the same adapters find them; a network of fewer things has another mean.
            kept = {path: path.read_bytes() for path in (folder / output / "shared").iterdir()}
            learn(folder, f"less_{encoders}", *more, "--num_identities", 1, "--decoder_layers", 2, steps=1)
            assert kept == {path: path.read_bytes() for path in (folder / output / "shared").iterdir()}
            means = [(folder / each / "mean_adapter.safetensors").read_bytes() for each in (output, f"less_{encoders}")]
            assert len(kept) == 2 and means[0] != means[1]
            flags = ["--pretrained_model_name_or_path", model, "--hypernetwork", folder / output, "--device", "cpu"]
            flags += [
                "--image",
                folder / "things/thing_1/0.png",
                "--prompt",
                "a sks thing",
                "--num_images_per_prompt",
                1,
            ]
            flags += ["--num_inference_steps", 2, "--max_train_steps", 1, "--output_dir", folder / f"one_{encoders}"]
            run_ok("personalize", *flags)
            for file in ["prediction.safetensors", "tuned/lightlora.safetensors"]:
                header, _ = read_safetensors(folder / f"one_{encoders}" / file)
                values = header["__metadata__"].items()
                parts = {value for key, value in values if key.endswith(".component")}
                assert parts == {"unet", "text_encoder", "text_encoder_2"} - set(["text_encoder_2"][encoders - 1 :]), (
                    parts
                )


def check_errors(folder, flags):
    def fails(expected, *arguments):
        done = run("personalize", *arguments, "--output_dir", folder / "fails")
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and expected in done.stderr, (expected, done)

    def with_(flag, value):
        changed = list(flags)
        changed[changed.index(flag) + 1] = value
        return changed

    fails("expected a picture for --image", *with_("--image", folder / "nothing.png"))
    fails("is what train_hypernetwork wrote", *with_("--hypernetwork", folder / "things"))
    other = SOURCE / "tests/parity/data/pipeline"
    fails("for another model", *with_("--pretrained_model_name_or_path", other))
    # The same layers with other weights.
    header, data = read_safetensors(folder / "whole/hypernetwork.safetensors")
    begin, end = header["norms"]["data_offsets"]
    start = len((folder / "whole/hypernetwork.safetensors").read_bytes()) - len(data)
    whole = bytearray((folder / "whole/hypernetwork.safetensors").read_bytes())
    whole[start + begin + 1 : start + begin + 2] = bytes([whole[start + begin + 1] ^ 0x08])
    (folder / "whole/hypernetwork.safetensors").write_bytes(bytes(whole))
    fails("weights have other norms", *flags)
    empty = folder / "empty"
    empty.mkdir()
    done = run(
        "train_hypernetwork",
        *["--pretrained_model_name_or_path", MODEL, "--identities_dir", empty, "--instance_prompt", "a sks thing"],
        *["--output_dir", folder / "none"],
    )
    assert done.returncode == 1 and "sub-folder" in done.stderr, done


if __name__ == "__main__":
    main(globals())
