# SPDX-License-Identifier: Apache-2.0
"""The study at its smallest: every row runs, both-zero never moves, a second call repeats nothing, and two processes
share what is left to do."""

import json
import pathlib

from processes_support import Processes
from processes_support import run_ok as run_processes
from support import SOURCE, WIDTH, attention_shapes, main, run, run_ok, scratch

ROWS = [
    "0 classic",
    "1 light, up zero",
    "2 light, down zero",
    "3 light, both zero",
    "4 fused, split to 4",
    "5 light, N(0,1) bases",
    "5s light, scaled N",
]


def flags(folder):
    return [
        "--quick",
        "--pretrained_model_name_or_path",
        SOURCE / "examples/stable_diffusion/assets/base",
        "--instance_data_dir",
        SOURCE / "examples/stable_diffusion/assets/teddy_bear",
        "--emoji_vectors",
        SOURCE / "examples/stable_diffusion/assets/measures/emoji.safetensors",
        "--output_dir",
        folder / "page",
        "--work_dir",
        folder / "work",
        "--seeds",
        1,
    ]


def study(folder):
    return run_ok("compare_variants", *flags(folder))


def table(page, heading):
    """The cells of the table under a heading, by the first one."""
    lines = page.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_only_some_variants_and_any_of_the_library():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        chosen = ["--only", "loha", "--only", "1 light, up zero"]
        output = run_ok("compare_variants", *flags(folder), *chosen)
        page = (folder / "page/index.md").read_text()
        assert list(table(page, "Each at its own rate")) == ["1 light, up zero", "loha"], page
        # Two rates of two rows each, and no other ranks or bases.
        runs = [path for path in (folder / "work").glob("*.json") if "curve" in json.loads(path.read_text())]
        assert len(runs) == 4 and "4 runs" in output, (runs, output)
        done = run("compare_variants", *flags(folder), "--only", "lohaa")
        assert done.returncode == 2 and "did you mean 'loha'?" in done.stderr, done
        # Every variant that the library registers has a name here.
        for name in ["classic", "full", "shira", "glora", "word alone", "5s light, scaled N"]:
            assert f"'{name}'" in done.stderr, (name, done.stderr)


def test_quick():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        output = study(folder)
        assert "warning: 3 light, both zero starts on a saddle" in output, output
        page = (folder / "page/index.md").read_text()
        assert list(table(page, "Each at its own rate")) == ROWS, page
        assert list(table(page, "All at the described rate")) == ROWS, page
        assert list(table(page, "A fused core cut to a rank")) == ["1", "4", "50"], page
        assert "3 (both zero) does not learn" in page and "reproduces, and is explained" in page, page
        words = table(page, "Words without adapters")
        assert list(words) == ["word alone", "layer-wise word alone"], page
        assert int(words["layer-wise word alone"][0]) > int(words["word alone"][0]) == WIDTH, words
        sizes = table(page, "Files for Stable Diffusion 1.5")
        assert sizes["light, rank 4"][:2] == ["76800", "379"] and float(sizes["light, rank 4"][2]) < 379, sizes
        assert "One seed: nothing here can be called better" in page and "undecided: one run" in page, page
        for name in ["contact.png", "curves.png", "ranks.png"]:
            assert (folder / "page" / name).read_bytes().startswith(b"\x89PNG"), name

        results = {path.name: json.loads(path.read_text()) for path in (folder / "work").glob("*.json")}
        runs = {name: result for name, result in results.items() if "curve" in result}
        for name, run in runs.items():
            still = "both_zero" in name
            assert (run["moved"] == 0) == still, (name, run["moved"])
            assert (run["quality"]["loss"] == run["start_loss"]) == still, (name, run)
        fused = next(run for name, run in runs.items() if name.startswith("fused"))
        classic = next(run for name, run in runs.items() if name.startswith("classic-up_zero-orthogonal-rank4"))
        assert fused["trainable"] == sum(min(50, out) * min(100, inside) for out, inside in attention_shapes()), fused
        assert fused["exported_bytes"] < classic["exported_bytes"] * 1.1, (fused, classic)
        splits = next(result["splits"] for result in results.values() if "splits" in result)
        energies = [split["energy"] for split in splits]
        assert energies == sorted(energies) and abs(energies[-1] - 1) < 1e-9, energies

        # A finished study trains nothing; one run that is lost is done again, to the same values.
        times = {path: path.stat().st_mtime_ns for path in (folder / "work").iterdir()}
        lost = sorted(runs)[:1]
        again = repeat(folder, lost, study)
        assert again.count("\n[") == 1, again
        unchanged = [
            path
            for path, time in times.items()
            if not path.name.startswith(lost[0][:-5]) and path.stat().st_mtime_ns != time
        ]
        assert not unchanged, unchanged
        check_shared(folder, runs)


def values(path):
    """A result without what depends on the machine's mood."""
    result = json.loads(path.read_text())
    return {name: value for name, value in result.items() if name != "seconds_per_step"}


def repeat(folder, lost, how):
    """What a study prints that has to do these runs again, and comes to the same."""
    work = folder / "work"
    before = {name: values(work / name) for name in lost}
    for name in lost:
        (work / name).unlink()
    output = how(folder)
    for name in lost:
        assert before[name] == values(work / name), name
    return output


def check_shared(folder, runs):
    """Two processes take turns with the runs of each round; rank 0 learns the word and writes the page."""
    lost = [name for name in sorted(runs) if "rank1-" in name] + sorted(runs)[-3:]
    word = next((folder / "work").glob("word-*"))
    vectors = word.read_bytes()
    word.unlink()
    (folder / "page/index.md").unlink()
    output = repeat(folder, lost, lambda folder: run_processes("compare_variants", 2, lambda rank: flags(folder)))
    assert word.read_bytes() == vectors
    lines = [line for line in output.splitlines() if line.startswith("[")]
    assert len(lines) == len(lost) and {line.count("by process 0") for line in lines} == {0, 1}, output
    assert list(table((folder / "page/index.md").read_text(), "Each at its own rate")) == ROWS

    # A folder of each process's own is found before anything is trained.
    group = Processes("compare_variants", 2, lambda rank: flags(folder / str(rank)))
    for rank, (status, _, err) in group.wait().items():
        assert status == 2 and f"error: rank {rank}: --work_dir: expected the same on all ranks" in err, err


main(globals())
