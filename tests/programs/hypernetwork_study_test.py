# SPDX-License-Identifier: Apache-2.0
"""The study of hypernetworks at its smallest: every network trains, every way personalises, and a second call repeats
nothing."""

import pathlib

from hypernetwork_test import identities, learn
from support import MODEL, main, run, run_ok, scratch

FILES = ["hypernetwork.md", "hypernetwork-pictures.png", "hypernetwork-steps.png"]


def flags(folder):
    files = ["--identities_dir", folder / "things", "--validation_dir", folder / "others"]
    files += ["--output_dir", folder / "page", "--work_dir", folder / "work"]
    return ["--quick", "--pretrained_model_name_or_path", MODEL, *files]


def test_quick():
    with scratch() as name:
        folder = pathlib.Path(name)
        identities(folder / "things")
        identities(folder / "others", count=2)
        output = run_ok("compare_hypernetwork", *flags(folder))
        page = (folder / "page/hypernetwork.md").read_text()
        tables = page.split("\n## ")[1:]
        titles = ["Findings", "Against other ways", "Its parts", "Controls", "Steps of tuning", "Networks"]
        assert [table.split("\n")[0] for table in tables[:6]] == titles, page
        for row in [
            "hypernetwork + 2 relaxed steps",
            "LoRA DreamBooth, 2 steps",
            "LoRA DreamBooth, 3 steps",
            "textual inversion, 2 steps",
            "no personalisation",
        ]:
            assert f"| {row} |" in tables[1], tables[1]
        assert "undecided: one seed" in tables[0] and "One seed: nothing here can be called better" in page
        networks = [line.split(" | ")[0][2:] for line in tables[5].splitlines() if line.startswith("| ")]
        assert networks[2:] == [
            "all identities, both losses, rank 1",
            "k = 1",
            "2 identities",
            "no weight loss",
            "weight loss alone",
            "core of Fused",
            "rank 4",
        ], networks
        for file in FILES[1:]:
            assert (folder / "page" / file).read_bytes().startswith(b"\x89PNG"), file

        # A finished study makes nothing again; a run that is lost is made again, and comes to the same.
        assert output.count("\n[") > 15, output
        again = "\n" + run_ok("compare_hypernetwork", *flags(folder))
        assert again.count("\n[") == 0 and "\nnetwork: " not in again, again
        assert (folder / "page/hypernetwork.md").read_text() == page
        next((folder / "work/runs").glob("continued-*seed0*.json")).unlink()
        again = "\n" + run_ok("compare_hypernetwork", *flags(folder))
        assert 1 <= again.count("\n[") <= 2 and "\nnetwork: " not in again, again

        refused = run("compare_hypernetwork", *flags(folder), "--without", "nothing")
        assert refused.returncode == 2 and "--without: expected one of 'word', 'once', 'few2'" in refused.stderr, (
            refused
        )
        refused = run("compare_hypernetwork", *flags(folder), "--validation_dir", folder / "nothing")
        assert refused.returncode == 1 and "sub-folder for each thing" in refused.stderr, refused


def test_of_one_network():
    """A network that is there is measured and none is trained; what starts from nothing is not done again for another."""
    with scratch() as name:
        folder = pathlib.Path(name)
        identities(folder / "things")
        identities(folder / "others", count=2)
        learn(folder, "network", "--target_steps", 0, "--prediction_penalty", 0.001, steps=2)
        given = [*flags(folder), "--network_dir", folder / "network", "--without", "word"]
        output = "\n" + run_ok("compare_hypernetwork", *given)
        assert "\nnetwork: " not in output and output.count("/8] ") == 8, output
        page = (folder / "page/hypernetwork.md").read_text()
        assert "standard error over the things" in page and "| the network given | 3 |" in page, page
        assert "prediction for the nearest identity" in page and "textual inversion" not in page, page

        learn(folder, "other", "--target_steps", 0, "--prediction_penalty", 0.001, steps=3)
        given[given.index(folder / "network")] = folder / "other"
        again = "\n" + run_ok("compare_hypernetwork", *given)
        assert again.count("/5] ") == 5, again  # without no hypernetwork, and LoRA DreamBooth twice
        refused = run("compare_hypernetwork", *flags(folder), "--network_dir", folder / "things")
        assert refused.returncode == 1 and "is what train_hypernetwork wrote" in refused.stderr, refused


if __name__ == "__main__":
    main(globals())
