# SPDX-License-Identifier: Apache-2.0
"""Hypernetworks, fonts and models for a study from strangers; and what an earlier personalize left."""

import json
import os
import pathlib
import shutil
import struct
import tempfile

from strangers_support import (
    BASELINES,
    Case,
    entries,
    fifo,
    floats,
    model_folder,
    run_measured,
    run_tests_and_cases,
    safetensors,
    training,
    what_is_wrong_with_line,
    zeros,
)
from support import MODEL, SOURCE, SUBJECT

NETWORK = SOURCE / "examples/stable_diffusion/assets/hypernetwork"
NAME = "hypernetwork.safetensors"
CONFIG = SOURCE / "examples/stable_diffusion/research/pretraining/base.json"
FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # make_dataset's, if it is installed
DEEP = "[" * 100_000 + "]" * 100_000
MANY = "[" + "0," * 3_000_000 + "0]"
HUGE = 2**62


def personalizes(network, out, *more):
    flags = ["--pretrained_model_name_or_path", MODEL, "--hypernetwork", network, "--image", SUBJECT / "0_purple.png"]
    flags += ["--prompt", "a sks cat", "--output_dir", out, "--device", "cpu", "--seed", 1, "--max_train_steps", 0]
    return [*flags, "--num_images_per_prompt", 1, "--num_inference_steps", 1, *more]


def network(folder, sizes=None, **texts):
    """The bundled network's file with another description of its sizes, or other texts."""
    made = folder / "net"
    made.mkdir()
    shutil.copyfile(NETWORK / "mean_adapter.safetensors", made / "mean_adapter.safetensors")
    data = (NETWORK / NAME).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    about = header["__metadata__"]
    if isinstance(sizes, dict):
        about["hypernetwork"] = json.dumps({**json.loads(about["hypernetwork"]), **sizes})
    elif sizes is not None:
        about["hypernetwork"] = sizes
    about.update(texts)
    text = json.dumps(header).encode()
    (made / NAME).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])
    return made


def predicts(sizes=None, **texts):
    return lambda folder, out: personalizes(network(folder, sizes, **texts), out)


def beside(name, make):
    """A network's folder in which one of its two files is another thing."""

    def arguments(folder, out):
        made = network(folder)
        (made / name).unlink()
        make(made / name)
        return personalizes(made, out)

    return arguments


def flagged(*flags):
    return lambda folder, out: personalizes(NETWORK, out, *flags)


def where_a_folder_is(name):
    def arguments(folder, out):
        (out / name).mkdir(parents=True)
        return personalizes(NETWORK, out, "--overwrite_output_dir")

    return arguments


def previews(text):
    """A dry run that would show previews by a decoder of which there is the configuration."""

    def arguments(folder, out):
        made = folder / "tiny"
        made.mkdir()
        (made / "config.json").write_text(text)
        flags = training("train_dreambooth_lora", MODEL, SUBJECT, out)
        return [*flags, "--dry_run", "--validation_prompt", "x", "--validation_steps", 1, "--taesd", made]

    return arguments


def draws_emoji(make):
    def arguments(folder, out):
        return ["--config", CONFIG, "--font", make(folder / "font.ttf"), "--output_dir", out]

    return arguments


def asks_for(flag, value):
    return lambda folder, out: ["--config", CONFIG, "--output_dir", out, flag, value]


def studies(name, make):
    """A study of a model in which one file of weights is another thing."""

    def arguments(folder, out):
        model = model_folder(folder, {name: make})
        flags = ["--pretrained_model_name_or_path", model, "--output_dir", out, "--work_dir", out, "--quick"]
        return [*flags, "--only", "loha", "--instance_data_dir", SUBJECT]

    return arguments


def made(path, make):
    make(path)
    return path


def case(name, make, *says, program="personalize", **more):
    return Case(name, program, make, says, **more)


SIZES = [
    ("width", HUGE),
    ("width", 2**31),
    ("width", -8),
    ("width", 0),
    ("width", "x"),
    ("heads", 0),
    ("grid", 2**40),
    ("side", 2**40),
    ("side", 0),
    ("encoder_layers", 2**31),
    ("decoder_layers", 2**31),
    ("decoder_layers", 2**63 - 1),
    ("iterations", HUGE),
    ("channels", 2**40),
    ("channels", -1),
    ("layers", []),
    ("layers", 5),
    ("layers", [["x", HUGE]] * 4),
    ("layers", [["x", -5]]),
    ("layers", [["\x1b[2J\n", 8]]),
    ("layers", [["x", 1]] * 300_000),
]
CASES = [
    case("sizes of deep JSON", predicts(DEEP), NAME),
    case("sizes of three million values", predicts('{"layers":' + MANY + "}"), NAME),
    case("sizes that are no JSON", predicts("x"), NAME),
    case("sizes that are a list", predicts("[]"), NAME),
    *[case(f"{field} {str(value)[:40]}", predicts({field: value}), NAME) for field, value in SIZES],
    *[
        case(f"a resolution of {side!r}", predicts(resolution=side), NAME)
        for side in ("", "x", "-5", "1e9", "9" * 30, "64\x1b[2J", "8")
    ],
    case("a prompt of a megabyte", predicts(instance_prompt="a " * 500_000), NAME),
    *[
        case(f"{what} as {name}", beside(name, make), name)
        for name in (NAME, "mean_adapter.safetensors")
        for what, make in (("a pipe", fifo), ("a device", zeros), ("a folder", os.mkdir))
    ],
    case(
        "a mean of other layers",
        beside("mean_adapter.safetensors", lambda path: safetensors(path, {"x": floats(1)})),
        "mean_adapter.safetensors",
    ),
    *[
        case(f"{flag} {value}", asks_for(flag, value), flag, program="make_dataset", status=2)
        for flag, value in (("--instance_size", 1024), ("--pictures", 10**9), ("--identities", 10**6))
    ],
    case("a million million refinements", flagged("--iterations", 10**12), "--iterations", status=2),
    case("a folder where a picture goes", where_a_folder_is("0.png"), "0.png"),
    case("a folder where the prediction goes", where_a_folder_is("prediction.safetensors"), "prediction.safetensors"),
    *[
        case(
            f"TAESD's {text}, where no weights are read", previews(text), "config.json", program="train_dreambooth_lora"
        )
        for text in (
            DEEP,
            '{"num_decoder_blocks": "x"}',
            '{"num_decoder_blocks": [1000000000000]}',
            '{"num_decoder_blocks": [99, 2]}',
            '{"num_decoder_blocks": [-1]}',
            '{"latent_channels": -1}',
            '{"latent_channels": 1000000}',
            '{"scaling_factor": 1e999}',
            '{"scaling_factor": "x"}',
        )
    ],
    *[
        case(f"{what} as font", draws_emoji(make), "font.ttf", program="make_dataset")
        for what, make in (
            ("a pipe", fifo),
            ("a device", zeros),
            ("a folder", lambda path: made(path, os.mkdir)),
            ("a text", lambda path: made(path, lambda text: text.write_text("x"))),
            ("nothing", lambda path: path),
        )
    ],
    *[
        case(f"{what} as weights of a model to study", studies(name, make), name, program="compare_variants")
        for name in ("unet/diffusion_pytorch_model.safetensors",)
        for what, make in (("a pipe", fifo), ("a device", zeros))
    ],
]


def test_another_data_set_is_not_mixed_with_the_first(folder):
    if not FONT.exists():
        return
    few = {"emoji": ["robot"], "subjects": ["teddy bear"], "extra_groups": []}
    config = json.loads(CONFIG.read_text())
    (folder / "c.json").write_text(json.dumps({"dataset": {**config["dataset"], **few}}))
    flags = ["--config", folder / "c.json", "--output_dir", folder / "data", "--pictures"]
    for _ in range(2):  # the same again is no other
        ended = run_measured("make_dataset", [*flags, 3], 300)
        assert ended.status == 0, ended
    before = entries(folder / "data")
    for more in ([2], [3, "--instance_pictures", 1], [3, "--instance_size", 32], [3, "--identities", 1]):
        ended = run_measured("make_dataset", [*flags, *more], 300)
        assert ended.status == 1 and what_is_wrong_with_line(ended.err, ["data'", "other settings"]) == "", ended
        assert entries(folder / "data") == before


def pictures(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_second_picture_takes_the_place_of_the_first(folder):
    out = folder / "out"
    flags = ["--max_train_steps", 1, "--overwrite_output_dir"]
    for image, count in (("0_purple.png", 2), ("1_orange.png", 1)):
        given = [*personalizes(NETWORK, out, *flags, "--image", SUBJECT / image), "--num_images_per_prompt", count]
        ended = run_measured("personalize", once(given), 300)
        assert ended.status == 0, ended
    assert [path.read_bytes() for path in (out / "instance").iterdir()] == [(SUBJECT / "1_orange.png").read_bytes()]
    assert pictures(out) == ["0.png"], pictures(out)
    # The copy that the run left, as the picture of the next one.
    (copy,) = (out / "instance").iterdir()
    ended = run_measured("personalize", once(personalizes(NETWORK, out, *flags, "--image", copy)), 300)
    assert ended.status == 0 and copy.read_bytes() == (SUBJECT / "1_orange.png").read_bytes(), ended
    (out / "instance/mine.png").write_bytes(copy.read_bytes())
    ended = run_measured("personalize", once(personalizes(NETWORK, out, *flags)), 300)
    assert ended.status == 1 and b"mine.png" in ended.err and (out / "instance/mine.png").exists(), ended


def once(arguments):
    """Each flag with its last value."""
    flags, last = {}, None
    for part in map(str, arguments):
        if part.startswith("--"):
            last = part
            flags[last] = []
        else:
            flags[last] = [part]
    return [part for flag, values in flags.items() for part in (flag, *values)]


with tempfile.TemporaryDirectory(prefix="lightlora-") as place:
    honest = run_measured("personalize", personalizes(NETWORK, pathlib.Path(place, "out")), 300)
    assert honest.status == 0, honest
    BASELINES["personalize"] = honest.megabytes
run_tests_and_cases(globals(), CASES)
