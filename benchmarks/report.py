# SPDX-License-Identifier: Apache-2.0
"""Writes the tables (tables.md) and draws the plots (PNG) of one folder of results, beside its JSON files.

Usage: report.py <folder with layer.json, layer_vs_peft.json, rows_vs_peft.json, train.json, generate.json; what is missing is left out>
"""

import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)

COLOURS = {
    "composed": "#b8b8b8",
    "PEFT": "#d98c5f",
    "bypass": "#4c78a8",
    "merged": "#72b7b2",
    "auto": "#2f4b7c",
    "packed": "#59a14f",
    "lightlora, packed": "#59a14f",
    "lightlora": "#2f4b7c",
    "diffusers + PEFT": "#d98c5f",
    "diffusers": "#d98c5f",
}


def shape(row):
    return f"{row['n']}×{row['k']}→{row['m']}"


def caption(machine):
    parts = [
        machine["processor"],
        f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else ""),
        machine["clock"],
        f"LibTorch {machine.get('libtorch') or machine.get('torch')}",
        machine["date"],
    ]
    return ", ".join(parts)


def bars(axis, groups, series, lowest=0.0):
    """`series`: name -> one value for each group (None: no bar)."""
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [g - 0.4 + width * (i + 0.5) for g in range(len(groups))]
        shown = [(p, v) for p, v in zip(places, values) if v is not None]
        axis.bar(
            [p for p, _ in shown],
            [v - lowest for _, v in shown],
            width * 0.92,
            bottom=lowest,
            label=name,
            color=COLOURS.get(name),
        )
        for place, value in shown:
            axis.annotate(
                f"{value:.2f}",
                (place, value),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6,
                rotation=90 if len(series) > 2 else 0,
                annotation_clip=True,
            )
    axis.set_xticks(range(len(groups)), groups, fontsize=7, rotation=20, ha="right")
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, folder, name, title, machine):
    figure.suptitle(title, fontsize=11)
    figure.text(0.01, 0.005, caption(machine), fontsize=6, color="#666666")
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    figure.savefig(folder / name, dpi=150)
    plt.close(figure)
    print(folder / name)


def plot_layer(folder, data):
    rows = [row for row in data["rows"] if "ratio_to_bare" in row and row["variant"] != "bare"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = plt.subplots(
        len(variants), len(dtypes), figsize=(6.5 * len(dtypes), 2.9 * len(variants)), squeeze=False
    )
    for i, variant in enumerate(variants):
        for j, dtype in enumerate(dtypes):
            own = [row for row in rows if row["variant"] == variant and row["dtype"] == dtype]
            shapes = list(dict.fromkeys(shape(row) for row in own))
            series = {
                route: [
                    next((row["ratio_to_bare"] for row in own if shape(row) == s and row["route"] == route), None)
                    for s in shapes
                ]
                for route in ["composed", "bypass", "merged", "auto", "packed"]
            }
            axis = axes[i][j]
            series = {route: values for route, values in series.items() if any(values)}
            bars(axis, shapes, series, lowest=1.0)
            axis.axhline(1, color="black", linewidth=0.8)
            lowest = min(v for values in series.values() for v in values if v)
            # Without the forced merged route, which with few rows is off any scale: its bars are cut there.
            highest = max(v for route, values in series.items() for v in values if v and route != "merged")
            axis.set_ylim(min(1.0, lowest - 0.08), 1.15 * highest)
            axis.set_title(f"{variant}, rank {own[0]['rank']}, {dtype}", fontsize=9)
            axis.set_ylabel("time / bare layer", fontsize=8)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, ncols=5, loc="lower right")
    save(
        figure,
        folder,
        "layer.png",
        "Forward + backward of an adapted layer over the bare frozen layer",
        data["machine"],
    )


def plot_peft(folder, data):
    rows = data["rows"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(6.5 * len(dtypes), 3.4), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes):
        own = [row for row in rows if row["dtype"] == dtype and row["variant"] == "classic"]
        bars(
            axis,
            [shape(row) for row in own],
            {
                "PEFT": [row["peft_ratio_to_bare"] for row in own],
                "lightlora": [row["our_ratio_to_bare"] for row in own],
                "lightlora, packed": [row["packed_ratio_to_bare"] for row in own],
            },
            lowest=1.0,
        )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"ClassicLoRA, rank {own[0]['rank']}, {dtype}", fontsize=9)
        axis.set_ylabel("time / own bare layer", fontsize=8)
    axes[0][0].legend(fontsize=8)
    save(
        figure,
        folder,
        "layer_vs_peft.png",
        "One adapted layer, forward + backward: PEFT and lightlora in one run",
        data["machine"],
    )


def plot_programs(folder, files):
    figure, axes = plt.subplots(1, len(files), figsize=(6.5 * len(files), 3.4), squeeze=False)
    for axis, (what, data) in zip(axes[0], files.items()):
        other = "diffusers + PEFT" if what == "train" else "diffusers"
        bars(
            axis,
            [row["case"] for row in data["rows"]],
            {
                other: [1.0 for _ in data["rows"]],
                "lightlora": [row["ours_s"] / row["python_s"] for row in data["rows"]],
            },
        )
        axis.set_title({"train": "training step", "generate": "denoising step"}[what], fontsize=9)
        axis.set_ylabel(f"time / {other}", fontsize=8)
        axis.set_ylim(0, 1.35)
        axis.legend(fontsize=8, loc="upper right", ncols=2)
    save(
        figure,
        folder,
        "programs.png",
        "Whole steps against Python on the same machine, in one run",
        next(iter(files.values()))["machine"],
    )


def table(columns, rows):
    """`columns`: heading -> text of a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(text(row) for text in columns.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def layer_tables(data):
    text = "## Layer\n\n" + caption(data["machine"]) + ".\n"
    for dtype, peaks in data["peaks"].items():
        rows = [row for row in data["rows"] if row["dtype"] == dtype and "ratio_to_bare" in row]
        text += (
            f"\n### {dtype}\n\nProduct peak {peaks['gflops']:.0f} GFLOP/s, copy {peaks['gbytes_per_s']:.1f} GB/s. "
            "Times in microseconds, `gap` is time over the roofline floor, `kept` is kept for the backward pass.\n\n"
        )
        text += table(
            {
                "rows×in→out": shape,
                "variant": lambda r: r["variant"],
                "route": lambda r: r["route"],
                "rank": lambda r: str(r["rank"]),
                "forward": lambda r: f"{r['forward_us']:.0f}",
                "backward": lambda r: f"{r['backward_us']:.0f}",
                "total (IQR)": lambda r: f"{r['total_us']:.0f} ({r['total_iqr_us']:.0f})",
                "samples": lambda r: str(r["samples"]),
                "/ bare (IQR)": lambda r: f"{r['ratio_to_bare']:.3f} ({r['ratio_iqr']:.3f})",
                "/ composed": lambda r: f"{r['ratio_to_composed']:.3f}",
                "/ auto": lambda r: f"{r['ratio_to_active']:.3f}" if "ratio_to_active" in r else "",
                "GFLOP/s": lambda r: f"{r['gflops']:.0f} ({100 * r['share_of_gemm_peak']:.0f}%)",
                "floor": lambda r: f"{r['floor_us']:.0f}",
                "gap": lambda r: f"{r['gap_to_floor']:.2f}",
                "ops": lambda r: str(r["kernels"]),
                "kept KB": lambda r: f"{r['kept_for_backward_bytes'] / 1024:.0f}",
                "peak above bare KB": lambda r: f"{r['peak_bytes_above_bare'] / 1024:.0f}",
                "error": lambda r: f"{r['error']:.0e}",
            },
            rows,
        )
    return text


def peft_tables(data):
    machine = data["machine"]
    text = f"\n## Layer against PEFT {machine['peft']}\n\n{caption(machine)}.\n\n" + table(
        {
            "rows×in→out": shape,
            "dtype": lambda r: r["dtype"],
            "variant, rank": lambda r: f"{r['variant']}, {r['rank']}",
            "ours / bare": lambda r: f"{r['our_ratio_to_bare']:.3f}",
            "packed / bare": lambda r: f"{r['packed_ratio_to_bare']:.3f}",
            "PEFT / bare": lambda r: f"{r['peft_ratio_to_bare']:.3f}",
            "overhead ours / PEFT": lambda r: f"{r['overhead_ratio']:.2f}",
            "total ours / PEFT": lambda r: f"{r['total_ratio']:.3f}",
            "total packed / PEFT": lambda r: f"{r['packed_total_ratio']:.3f}",
            "kept KB, ours": lambda r: f"{r['our_kept_bytes'] / 1024:.1f}",
            "kept KB, PEFT": lambda r: f"{r['peft_kept_bytes'] / 1024:.1f}",
            "samples": lambda r: str(r["samples"]),
        },
        data["rows"],
    )
    for key in dict.fromkeys((row["dtype"], row["variant"]) for row in data["rows"]):
        own = [max(row["overhead_ratio"], 1e-3) for row in data["rows"] if (row["dtype"], row["variant"]) == key]
        text += f"\nGeometric mean of the overheads, {key[1]} in {key[0]}: {statistics.geometric_mean(own):.2f}.\n"
    return text


def row_tables(data):
    machine = data["machine"]
    return f"\n## Rows with different adapters against PEFT {machine['peft']}\n\n{caption(machine)}.\n\n" + table(
        {
            "adapters": lambda r: str(r["adapters"]),
            "ours, over one adapter": lambda r: f"{r['mixed_over_one']:.2f}",
            "PEFT, over one adapter": lambda r: f"{r['peft_mixed_over_one']:.2f}",
            "PEFT / ours": lambda r: f"{r['peft_over_ours']:.2f}",
        },
        data["rows"],
    )


def program_tables(programs):
    rows = [row for data in programs.values() for row in data["rows"]]
    machine = next(iter(programs.values()))["machine"]
    return f"\n## Whole steps against diffusers {machine['diffusers']}\n\n{caption(machine)}.\n\n" + table(
        {
            "step": lambda r: r["what"],
            "case": lambda r: r["case"],
            "batch": lambda r: str(r["batch"]),
            "ours, s (IQR)": lambda r: f"{r['ours_s']:.3f} ({r['ours_iqr_s']:.3f})",
            "Python, s (IQR)": lambda r: f"{r['python_s']:.3f} ({r['python_iqr_s']:.3f})",
            "times as fast": lambda r: f"{r['speedup']:.2f}",
            "rounds": lambda r: str(r["samples"]),
        },
        rows,
    )


def main(folder):
    def read(name):
        path = folder / name
        return json.loads(path.read_text()) if path.exists() else None

    text = "# Measured\n\nMade by benchmarks/report.py from the JSON files beside it.\n\n"
    if data := read("layer.json"):
        plot_layer(folder, data)
        text += layer_tables(data)
    if data := read("layer_vs_peft.json"):
        plot_peft(folder, data)
        text += peft_tables(data)
    if data := read("rows_vs_peft.json"):
        text += row_tables(data)
    programs = {what: data for what in ["train", "generate"] if (data := read(f"{what}.json"))}
    if programs:
        plot_programs(folder, programs)
        text += program_tables(programs)
    (folder / "tables.md").write_text(text)
    print(folder / "tables.md")


main(pathlib.Path(sys.argv[1]))
