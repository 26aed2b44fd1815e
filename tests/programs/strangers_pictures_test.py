# SPDX-License-Identifier: Apache-2.0
"""Pictures, data sets, settings and lists from strangers."""

import json
import pathlib
import struct
import zlib

from strangers_support import Case, drawing, fifo, floats, run_cases, safetensors, training, zeros
from support import MODEL, SOURCE, SUBJECT

DEEP = "[" * 100_000 + "]" * 100_000
PICTURE = (SUBJECT / "0_purple.png").read_bytes()
FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # make_dataset's, if it is installed
BASE = json.loads((SOURCE / "examples/stable_diffusion/research/pretraining/base.json").read_text())


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(texts=b"", width=8, height=8, pixels=None):
    rows = pixels if pixels is not None else zlib.compress(b"\0" * (3 * width + 1) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + texts
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def packed_texts(count, size, keyword=b"Comment"):
    data = chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(b"a" * size, 9))
    return data * count


def settings(text):
    return chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))


def from_png(data):
    """Settings of a picture, read before any model is."""

    def arguments(folder, out):
        (folder / "p.png").write_bytes(data)
        model = ["--pretrained_model_name_or_path", MODEL, "--device", "cpu"]
        return [*model, "--from_png", folder / "p.png", "--output", out]

    return arguments


def image(data, name="p.png", *more):
    """A picture to start from."""

    def arguments(folder, out):
        (folder / name).write_bytes(data)
        return [*drawing(MODEL), "--image", folder / name, "--strength", 1, "--output", out, *more]

    return arguments


def bmp(width, height, rows):
    size = 54 + rows * width * 3
    head = (
        b"BM"
        + struct.pack("<IHHI", size, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
    )
    return head + b"\xff" * (rows * width * 3)


def gif(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + b"\0" * 6
        + b",\0\0\0\0"
        + struct.pack("<HHB", width, height, 0)
        + b"\x02\x02L\x01\0;"
    )


def tga(width, height):
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 24, 0) + b"\xff" * 30


def jpeg(scans):
    """A progressive picture, 4000 pixels on a side, whose scans add nothing each."""
    side = 4000
    tables = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    frame = b"\xff\xc2\x00\x0b\x08" + struct.pack(">HH", side, side) + b"\x01\x01\x11\x00"
    huffman = (
        b"\xff\xc4\x00\x14\x00"
        + b"\x01"
        + b"\0" * 15
        + b"\x00"
        + b"\xff\xc4\x00\x14\x10"
        + b"\x01"
        + b"\0" * 15
        + b"\x00"
    )
    first = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x01" + b"\0" * (side * side // 64 // 8 + 1)
    more = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" + b"\0" * (side * side // 64 // 8 + 1)
    return b"\xff\xd8" + tables + frame + huffman + first + more * scans + b"\xff\xd9"


def trains(arrange, *more):
    """Pictures to learn from, with something among them."""

    def arguments(folder, out):
        pictures = folder / "pictures"
        pictures.mkdir()
        (pictures / "1.png").write_bytes(PICTURE)
        arrange(pictures)
        return [*training("train_dreambooth_lora", MODEL, pictures, out), *more]

    return arguments


def described(text):
    """A data set's file of sd-scripts' kind, with the picture's folder in place of PICTURES."""

    def arguments(folder, out):
        pictures = folder / "pictures"
        pictures.mkdir()
        (pictures / "1.png").write_bytes(PICTURE)
        file = folder / "d.toml"
        text(file) if callable(text) else file.write_text(text.replace("PICTURES", json.dumps(str(pictures))))
        flags = training("train_dreambooth_lora", MODEL, pictures, out)
        place = flags.index("--instance_data_dir")
        return [*flags[:place], *flags[place + 2 :], "--dataset_config", file]

    return arguments


def prompts(text):
    """A file of prompts to sample."""

    def arguments(folder, out):
        file = folder / "prompts.txt"
        text(file) if callable(text) else file.write_text(text)
        flags = training("train_dreambooth_lora", MODEL, SUBJECT, out)
        return [*flags, "--sample_prompts", file, "--validation_steps", 1]

    return arguments


def repeated(name, count=1):
    def arrange(pictures):
        for i in range(count):
            folder = pictures / name.format(i)
            folder.mkdir()
            (folder / "2.png").write_bytes(PICTURE)

    return arrange


def metadata(*lines):
    return lambda pictures: (pictures / "metadata.jsonl").write_text("\n".join(lines))


def toml(make):
    def arguments(folder, out):
        path = folder / "c.toml"
        path.write_text(make) if isinstance(make, str) else make(path)
        return ["--config", path, *training("train_dreambooth_lora", MODEL, SUBJECT, out)]

    return arguments


def dataset(names=None, dataset=None, **changes):
    def arguments(folder, out):
        (folder / "names.txt").write_text(names or "# group: Objects\n1F916 ; fully-qualified # x E1.0 robot\n")
        few = {"emoji": ["robot"], "subjects": [], "extra_groups": []}
        fields = {**BASE["dataset"], **few, **changes} if dataset is None else dataset
        (folder / "c.json").write_text(json.dumps({"dataset": fields}))
        return ["--config", folder / "c.json", "--emoji_names", folder / "names.txt", "--output_dir", out]

    return arguments


def pretrains(tensors=None, texts=None, stage="vae", **changes):
    """A stage of a model, from a data set."""

    def arguments(folder, out):
        names = texts or {"names": '["robot"]', "roles": "[0]"}
        values = tensors or {"bitmaps": ("U8", (1, 4, 136, 136), bytes(4 * 136 * 136))}
        (folder / "data").mkdir()
        safetensors(folder / "data/emoji.safetensors", values, names)
        config = {**BASE, stage: {**BASE[stage], "steps": 1, **changes}}
        (folder / "c.json").write_text(json.dumps(config))
        return [
            "--config",
            folder / "c.json",
            "--dataset_dir",
            folder / "data",
            "--stage",
            stage,
            "--output_dir",
            out,
            "--device",
            "cpu",
        ]

    return arguments


def case(name, make, *says, program="text_to_image", **more):
    return Case(name, program, make, says, **more)


def learning(name, make, *says, **more):
    return case(name, make, *says, program="train_dreambooth_lora", **more)


STEPS = "Steps: 1, Sampler: DDIM, Seed: 1"
SET = "[[datasets]]\n[[datasets.subsets]]\n"
ONE = "image_dir = PICTURES\n"
CASES = [
    # Pictures and their texts.
    case("texts that unpack to 2 GB", from_png(png(packed_texts(250, 8_000_000))), "p.png"),
    case(
        "texts that unpack to 2 GB, in a picture to start from",
        image(png(packed_texts(250, 7_900_000), 64, 64)),
        status=0,
    ),
    case("a picture of a million by a million", from_png(png(settings(STEPS), 2**20 - 1, 2**20 - 1, b"")), "p.png"),
    case("a picture to start from of a million by a million", image(png(b"", 2**20 - 1, 2**20 - 1, b"")), "p.png"),
    case("settings of 100,000 by 100,000 pixels", from_png(png(settings(f"x\n{STEPS}, Size: 100000x100000"))), "p.png"),
    case("settings of 2^62 pictures", from_png(png(settings(f"x\n{STEPS}, Batch index: 0/{2**62}"))), "p.png"),
    case(
        "settings of the picture before the first", from_png(png(settings(f"x\n{STEPS}, Batch index: -1/4"))), "p.png"
    ),
    case(
        "settings with numbers that are none",
        from_png(png(settings("x\nSteps: nan, Seed: -1, CFG scale: 1e999"))),
        "p.png",
    ),
    *[
        case(f"settings with {flag} out of place", from_png(png(settings(f"x\n{text}, Seed: 1"))), "p.png", "--" + flag)
        for flag, text in {
            "num_inference_steps": f"Steps: {2**62}",
            "clip_skip": f"{STEPS}, Clip skip: 99",
            "height": f"{STEPS}, Size: 65x65",
            "guidance_start": f"{STEPS}, CFG start: 0.9, CFG end: 0.1",
        }.items()
    ],
    case("settings with deep brackets", from_png(png(settings(f'x\n{STEPS}, Model: "{DEEP}"'))), status=0),
    case("settings with a prompt of a megabyte", from_png(png(settings("(" * 900_000 + f"\n{STEPS}"))), "p.png"),
    case("settings with escape codes", from_png(png(settings("x\n\x1b[2J: 1, Steps"))), "p.png"),
    case("a line of pixels to start from", image(bmp(4, 300, 300), "p.bmp", "--height", 64, "--width", 64), "--image"),
    case("a start of 17 million pixels", image(bmp(4200, 4000, 4000), "p.bmp"), "p.bmp", "--allow_large"),
    case("a BMP that is cut off", image(bmp(64, 64, 20), "p.bmp"), "p.bmp"),
    case("66 million pixels in a BMP of 78 bytes", image(bmp(4, 16_580_355, 2), "p.bmp"), "p.bmp", "too early"),
    case("a TGA that is cut off", image(tga(640, 640), "p.tga"), "p.tga"),
    case("a GIF of 60,000 by 2000 pixels", image(gif(60000, 2000), "p.gif"), "p.gif"),
    case("a JPEG of a thousand scans", image(jpeg(1000), "p.jpg"), "p.jpg"),
    case("a JPEG that is cut off before its end mark", image(jpeg(0)[:200] + b"\xff\xd9", "p.jpg"), "p.jpg"),
    # Data sets.
    learning("a pipe as caption", trains(lambda p: fifo(p / "1.txt")), "1.txt"),
    learning("a device as caption", trains(lambda p: zeros(p / "1.txt")), "1.txt"),
    learning("a caption of a megabyte", trains(lambda p: (p / "1.txt").write_text("a " * 500_000)), "1.txt"),
    learning("a pipe as metadata.jsonl", trains(lambda p: fifo(p / "metadata.jsonl")), "metadata.jsonl"),
    learning("a device as metadata.jsonl", trains(lambda p: zeros(p / "metadata.jsonl")), "metadata.jsonl"),
    learning("deep JSON in metadata.jsonl", trains(metadata(DEEP)), "metadata.jsonl"),
    learning(
        "a picture elsewhere in metadata.jsonl",
        trains(metadata('{"file_name": "../../etc/x.png", "text": "a"}')),
        "metadata.jsonl",
    ),
    learning(
        "a number as text in metadata.jsonl", trains(metadata('{"file_name": "1.png", "text": 5}')), "metadata.jsonl"
    ),
    learning(
        "a name with escape codes in metadata.jsonl",
        trains(metadata(json.dumps({"file_name": "\x1b[2J\n.png", "text": "a"}))),
        "metadata.jsonl",
    ),
    learning(
        "a name of 300 letters in metadata.jsonl",
        trains(metadata(json.dumps({"file_name": "G" * 300 + ".png", "text": "a"}))),
        "metadata.jsonl",
        "no such file",
    ),
    learning("a folder to repeat a thousand million times", trains(repeated("1000000000_x")), "1000000000_x"),
    learning("a folder to repeat 2^70 times", trains(repeated(f"{2**70}_x")), "_x"),
    learning("folders to repeat 20 million times in all", trains(repeated("100000_{}", 201)), "pictures"),
    learning("a pipe among the pictures", trains(lambda p: fifo(p / "notes")), status=0, seconds=120),
    learning("a device among the pictures", trains(lambda p: zeros(p / "2.png")), status=0, seconds=120),
    learning(
        "a text called a picture",
        trains(lambda p: (p / "1.png").unlink() or (p / "\x1b[31m.png").write_text("text")),
        "\\x1b[31m.png",
    ),
    # Configurations.
    learning("a pipe as configuration", toml(fifo), "c.toml"),
    learning("a device as configuration", toml(zeros), "c.toml"),
    learning("deep keys", toml("a" + ".a" * 100_000 + " = 1\n"), "c.toml", status=2),
    learning("deep tables", toml("[a" + ".a" * 100_000 + "]\n"), "c.toml", status=2),
    learning("deep lists", toml("a = " + DEEP + "\n"), "c.toml", status=2),
    # Research.
    case("unseen_every 0", dataset(unseen_every=0), "c.json", program="make_dataset"),
    case("unseen_every -1", dataset(unseen_every=-1), "c.json", program="make_dataset"),
    case("a size of nothing", dataset(size=0), "c.json", program="make_dataset"),
    case("a size of 2^40", dataset(size=2**40), "c.json", program="make_dataset"),
    case("no fields", dataset(dataset={}), "c.json", program="make_dataset"),
    case("layouts without an end", dataset(layouts=[{"scale": []}]), "c.json", program="make_dataset"),
    case(
        "a list of emoji in a long line",
        dataset("1F916 ; fully-qualified # " + "x" * 1_000_000 + "\n"),
        "names.txt",
        program="make_dataset",
    ),
    case(
        "a list of emoji with a number of 40 digits",
        dataset("F" * 40 + " ; fully-qualified # x E1.0 robot\n"),
        "names.txt",
        program="make_dataset",
    ),
    case(
        "fewer names than bitmaps",
        pretrains({"bitmaps": ("U8", (9, 4, 8, 8), bytes(2304))}),
        "emoji.safetensors",
        program="pretrain",
    ),
    case("bitmaps of another shape", pretrains({"bitmaps": floats(1, 4)}), "emoji.safetensors", program="pretrain"),
    case("a role of 99", pretrains(texts={"names": '["a"]', "roles": "[99]"}), "emoji.safetensors", program="pretrain"),
    case("deep names", pretrains(texts={"names": DEEP, "roles": "[0]"}), "emoji.safetensors", program="pretrain"),
    case("no roles", pretrains(texts={"names": '["a"]'}), "emoji.safetensors", program="pretrain"),
    *[
        case(f"{field} {value}", pretrains(**{field: value}), "c.json", program="pretrain")
        for field, value in (("validate_every", 0), ("save_every", 0), ("batch", 0), ("steps", -1))
    ],
    *[
        learning(f"a data set with {line}", described(SET + line + "\nimage_dir = PICTURES\n"), "d.toml", name)
        for line in (
            "num_repeats = 0",
            "num_repeats = -3",
            "num_repeats = 1e97",
            "num_repeats = 9000000000000000000",
            "keep_tokens = -1",
            "caption_dropout_rate = 1.5",
            "caption_tag_dropout_rate = -0.1",
            'caption_extension = "/../../../../etc/hostname"',
        )
        for name in [line.split()[0] if "extension" not in line else "plain name"]
    ],
    *[
        learning(f"a data set's {line}", described(SET.replace("[[datasets.", line + "\n[[datasets.") + ONE), "d.toml")
        for line in ("batch_size = 0", "batch_size = -1", "resolution = 0", "resolution = -8", "resolution = [8, -8]")
    ],
    learning("a data set of a pipe", described(fifo), "d.toml"),
    learning("a data set without an end", described(zeros), "d.toml"),
    learning("a data set of tables without an end", described("a." * 100_000 + "b = 1\n"), "d.toml"),
    learning("prompts of a pipe", prompts(fifo), "prompts.txt"),
    learning("prompts without an end", prompts(zeros), "prompts.txt"),
    *[
        learning(f"prompts with {words}", prompts(f"a bear {words}\n"), "prompts.txt")
        for words in ("--w 0", "--h -64", "--s -1", "--l nan", "--w 99999 --h 99999", "--d 99999999999999999999999")
    ],
    learning("400,000 prompts", prompts("a\n" * 400_000), "prompts.txt"),
    case("a stage without fields", pretrains(batch="x"), "c.json", program="pretrain"),
]

run_cases([case for case in CASES if case.program != "make_dataset" or FONT.exists()])
