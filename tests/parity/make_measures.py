# SPDX-License-Identifier: Apache-2.0
"""Makes the emoji vectors of the demo's measures, and the numbers of tests/programs/measure_test.cpp.

Made with Python 3.11, torch 2.11.0 (CPU), Pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0 and Debian's
packages fonts-noto-color-emoji 2.042 and unicode-data 15.0.0:

    python tests/parity/make_measures.py

writes examples/stable_diffusion/assets/measures/emoji.safetensors: `vectors`, (974, 4, 24, 24) uint8, the
reference_vector (measure.py) of each emoji scaled to a largest value of 255, names in the metadata.
Fonts cannot be had on every machine, and 8 bits suffice: the script checks that they change no cosine by
more than 1e-4, no rank under 100, and a deeper one by at most 1.
It also writes tests/parity/data/images_measures: a sheet of 64x64 pictures and what measure.py says of each
with the vectors as they were before rounding, and a bitmap with its reference_vector.
"""

import json
import pathlib
import re

import measure
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageFont
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
ASSETS = ROOT / "examples" / "stable_diffusion" / "assets" / "measures"
DATA = ROOT / "tests" / "parity" / "data" / "images_measures"
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_TEST = "/usr/share/unicode/emoji/emoji-test.txt"
GROUPS = ["Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"]
SUBJECTS = ["teddy bear", "robot", "parrot", "cactus", "sailboat", "mushroom", "octopus", "piñata"]
COLUMNS, PICTURE = 6, 64


def emoji_names():
    """(code point, name) of the fully qualified emoji of one code point; all clock faces look alike."""
    group = subgroup = None
    result = []
    for line in open(EMOJI_TEST, encoding="utf-8"):
        if line.startswith("# group: "):
            group = line[len("# group: ") :].strip()
        elif line.startswith("# subgroup: "):
            subgroup = line[len("# subgroup: ") :].strip()
        match = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.*)", line)
        if not match or group not in GROUPS or subgroup == "time":
            continue
        code_points = [code for code in match[1].split() if code != "FE0F"]
        if len(code_points) == 1:
            result.append((int(code_points[0], 16), match[2]))
    return result


def bitmap(font, code_point):
    """The emoji in the middle of a square: (side, side, 4) uint8, colours not multiplied by alpha."""
    mask, _ = font.getmask2(chr(code_point), mode="RGBA")
    width, height = mask.size
    values = np.array([mask.getpixel((x, y)) for y in range(height) for x in range(width)], np.uint8)
    side = max(width, height)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = values.reshape(height, width, 4)
    return square


def premultiplied(square):
    values = torch.from_numpy(square).float().permute(2, 0, 1) / 255
    return torch.cat([values[:3] * values[3:], values[3:]])


def draw(square, colour, generator, damage):
    """A 64x64 picture of an emoji at a random place on a colour with a little noise."""
    size = int(generator.integers(40, 59))
    left, top = generator.integers(0, PICTURE - size + 1, 2)
    canvas = Image.fromarray(
        np.clip(colour + generator.normal(0, 3, 3) + np.zeros((PICTURE, PICTURE, 3)), 0, 255).astype(np.uint8)
    )
    subject = Image.fromarray(square).resize((size, size), Image.LANCZOS)
    canvas.paste(subject, (int(left), int(top)), subject)
    if damage:
        canvas = canvas.filter(ImageFilter.GaussianBlur(damage))
        noise = generator.normal(0, 12 * damage, (PICTURE, PICTURE, 3))
        canvas = Image.fromarray(np.clip(np.array(canvas) + noise, 0, 255).astype(np.uint8))
    return np.array(canvas)


def make_pictures(bitmaps, names):
    """One row per subject; the pictures get worse from left to right, the last one loses its subject."""
    generator = np.random.default_rng(7)
    colours = list(measure.COLOURS.values())
    rows = []
    for row, subject in enumerate(SUBJECTS):
        square = bitmaps[names.index(subject)]
        pictures = []
        for column in range(COLUMNS):
            colour = np.array(colours[(row * COLUMNS + column) % len(colours)])
            pictures.append(draw(square, colour, generator, [0, 0, 0, 1, 2, 4][column]))
        rows.append(np.concatenate(pictures, 1))
    rows[-1][:, -PICTURE:] = (60, 150, 70)  # nothing but background
    return np.concatenate(rows, 0)


def measured(picture, vectors, names, subject):
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
    median, colour = measure.background(image)
    cosines = vectors @ measure.subject_vector(image)
    true = names.index(subject)
    return {
        "subject": subject,
        "background": [float(value) for value in median],
        "colour": colour,
        "cosine": float(cosines[true]),
        "rank": int((cosines >= cosines[true]).sum()) - 1,
    }


def measure_all(sheet, vectors, names):
    result = []
    for row, subject in enumerate(SUBJECTS):
        for column in range(COLUMNS):
            y, x = row * PICTURE, column * PICTURE
            result.append(measured(sheet[y : y + PICTURE, x : x + PICTURE], vectors, names, subject))
    return result


def make_reference():
    """A bitmap of an odd size with soft edges, off the middle, and its vector."""
    y, x = torch.meshgrid(torch.arange(101.0), torch.arange(101.0), indexing="ij")
    alpha = ((38 - ((x - 58) ** 2 + 1.7 * (y - 44) ** 2).sqrt()) / 6).clamp(0, 1)
    colours = torch.stack([x / 100, y / 100, (x + y) % 30 / 29])
    bitmap = (torch.cat([colours * alpha, alpha[None]]) * 255).round().to(torch.uint8)
    return {"bitmap": bitmap, "vector": measure.reference_vector(bitmap.float() / 255)}


def main():
    save_file(make_reference(), DATA / "reference.safetensors")
    font = ImageFont.truetype(FONT, 109)  # the one size of its bitmaps
    emoji = emoji_names()
    names = [name for _, name in emoji]
    bitmaps = [bitmap(font, code_point) for code_point, _ in emoji]
    vectors = torch.stack([measure.reference_vector(premultiplied(square)) for square in bitmaps])
    assert len(set(names)) == 974 and vectors.norm(dim=1).min() > 0.999
    rounded = (vectors / vectors.amax(1, keepdim=True) * 255).round().to(torch.uint8)

    sheet = make_pictures(bitmaps, names)
    exact = measure_all(sheet, vectors, names)
    compact = measure_all(sheet, torch.nn.functional.normalize(rounded.float(), dim=1), names)
    for a, b in zip(exact, compact):
        assert abs(a["rank"] - b["rank"]) <= (0 if a["rank"] < 100 else 1)
        assert abs(a["cosine"] - b["cosine"]) < 1e-4
    print("ranks", [a["rank"] for a in exact])
    print("largest change of a cosine", max(abs(a["cosine"] - b["cosine"]) for a, b in zip(exact, compact)))

    ASSETS.mkdir(parents=True, exist_ok=True)
    DATA.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": rounded.view(-1, 4, 24, 24)}, ASSETS / "emoji.safetensors", {"names": "\n".join(names)})
    Image.fromarray(sheet).save(DATA / "pictures.png", optimize=True)
    (DATA / "expected.json").write_text(json.dumps(exact, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
