#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo on all eight subjects, with several seeds: how much each comes to look like itself, and one sheet of them all.

    .deps/python/bin/python scripts/subjects.py build/bin [--seeds 1 2 3] [--only parrot ...]

scripts/demo.sh trains and draws. What is finished lies in --work_dir and is not done again, unless the demo or the
model has changed. Ends with the table and the sheet of the model's card: table.md and subjects.png. Needs
scripts/bootstrap.sh --tests (Pillow), and two minutes for each subject and seed on two cores.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

from PIL import Image, ImageDraw, ImageFont

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples/stable_diffusion/research/pretraining/base.json"
MODEL = ROOT / "examples/stable_diffusion/assets/base"
DEMO = ROOT / "scripts/demo.sh"
SIDE, GAP, LEFT = 128, 8, 110  # of the sheet, in pixels


def key(model, subject):
    """Follows from all that a result depends on."""
    digest = hashlib.sha256(DEMO.read_bytes())
    for path in [*sorted(model.rglob("*.safetensors")), *sorted(subject.iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def folder_name(name):
    """As make_dataset calls a subject's folder."""
    return name.replace(" ", "_").replace("ñ", "n")


def demo(flags, name, seed, subject):
    """The measures of one run, done or found."""
    output = flags.work_dir / f"{folder_name(name)}-{seed}"
    wanted, file = key(flags.model, subject), output / "result.json"
    if file.exists():
        result = json.loads(file.read_text())
        if result["key"] == wanted:
            return result
    start = time.monotonic()
    settings = {"MODEL": flags.model, "SUBJECT": subject, "NOUN": name.split()[-1], "EMOJI": name, "OUTPUT": output}
    settings = {setting: str(value) for setting, value in {**settings, "SEED": seed}.items()}
    done = subprocess.run(
        [DEMO, flags.bin, "--save_pictures"], env={**os.environ, **settings}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"subjects: {name}, seed {seed}: expected the demo to end well, got\n{done.stderr or done.stdout}")
    after = re.search(r"after: .*likeness ([\d.]+); background as asked in (\d+) of (\d+)", done.stdout)
    result = {
        "key": wanted,
        "likeness": float(after[1]),
        "backgrounds": [int(after[2]), int(after[3])],
        "seconds": round(time.monotonic() - start),
    }
    file.write_text(json.dumps(result) + "\n")
    print(
        f"{name}, seed {seed}: likeness {after[1]}, {after[2]} of {after[3]} backgrounds, {result['seconds']} s",
        flush=True,
    )
    return result


def table(results):
    lines = ["| subject | likeness | of each seed | backgrounds as asked |", "|---|---|---|---|"]
    for name, runs in results.items():
        each = [run["likeness"] for run in runs]
        followed, asked = (sum(run["backgrounds"][i] for run in runs) for i in (0, 1))
        numbers = ", ".join(f"{value:.3f}" for value in each)
        lines.append(f"| {name} | {statistics.mean(each):.3f} | {numbers} | {followed} of {asked} |")
    return "\n".join(lines) + "\n"


def sheet(flags, names, pictures):
    """A row for each subject: one of its pictures, then what each prompt drew with the first seeds."""
    rows = []
    for name in names:
        output = flags.work_dir / f"{folder_name(name)}-{flags.seeds[0]}"
        drawn = len(list(output.glob("after-*.png")))
        rows.append([next(iter(sorted(pictures[name].glob("*.png"))))])
        rows[-1] += [output / f"after-{index}.png" for index in range(0, drawn, 2)]  # two pictures a prompt
    width = LEFT + max(map(len, rows)) * (SIDE + GAP)
    image = Image.new("RGB", (width, GAP + len(rows) * (SIDE + GAP)), (250, 250, 248))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for y, (name, row) in enumerate(zip(names, rows)):
        top = GAP + y * (SIDE + GAP)
        draw.text(
            (GAP, top + SIDE // 2), folder_name(name).replace("_", " "), fill=(40, 40, 40), font=font, anchor="lm"
        )
        for x, path in enumerate(row):
            with Image.open(path) as picture:
                filter = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.LANCZOS
                image.paste(picture.convert("RGB").resize((SIDE, SIDE), filter), (LEFT + x * (SIDE + GAP), top))
    image.save(flags.work_dir / "subjects.png", optimize=True)


def main():
    names = json.loads(CONFIG.read_text())["dataset"]["subjects"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin", type=pathlib.Path, help="folder of the programs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SUBJECT")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--work_dir", type=pathlib.Path, default=ROOT / "build/subjects")
    flags = parser.parse_args()
    for path in ["bin", "model", "work_dir"]:
        setattr(flags, path, getattr(flags, path).resolve())
    data = flags.work_dir / "data"
    if not (data / "emoji.safetensors").exists():
        make = [flags.bin / "make_dataset", "--config", CONFIG, "--output_dir", data]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    pictures = {name: data / "subjects" / folder_name(name) for name in flags.only}
    # Seed by seed, so that a run that is stopped has seen all subjects.
    results = {name: [] for name in flags.only}
    for seed in flags.seeds:
        for name in flags.only:
            results[name].append(demo(flags, name, seed, pictures[name]))
    text = table(results)
    (flags.work_dir / "table.md").write_text(text)
    sheet(flags, flags.only, pictures)
    print(text + f"\n{flags.work_dir / 'table.md'}\n{flags.work_dir / 'subjects.png'}")


if __name__ == "__main__":
    main()
