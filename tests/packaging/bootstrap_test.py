# SPDX-License-Identifier: Apache-2.0
"""What scripts/bootstrap.sh would install, on machines with and without a GPU: it runs for real, with programs in place
of dpkg-query, apt-get and Python that write down how they are called."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(os.environ["LIGHTLORA_SOURCE_DIR"])
CUDA = "requirements-libtorch-cuda.txt"
CPU = "requirements-libtorch.txt --no-deps"
TESTS = ["requirements-test.txt", "requirements-test-torch.txt --no-deps"]

# `python3 -m venv FOLDER` puts this program there, so that pip is written down, too.
PYTHON = """#!/bin/bash
case "$*" in
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python3" ;;
  "-m pip install"*) options=; for word in "$@"; do [[ $word != --no-deps ]] || options=" $word"; done
    echo "pip ${!#}$options" | sed s,scripts/,, >>"$WRITTEN" ;;
  *stand_in_cuda.py*) echo stand_in >>"$WRITTEN" ;;
esac
"""
# Of Debian's packages only those of $INSTALLED are there.
DPKG_QUERY = """#!/bin/bash
for package in "${@:3}"; do
  [[ " $INSTALLED " != *" $package "* ]] || printf 'installed:%s ' "$package"
done
"""
APT_GET = """#!/bin/bash
[[ $1 != install ]] || echo "apt ${*:2}" >>"$WRITTEN"
"""
ID = "#!/bin/bash\necho 0\n"
TOOLS = "g++ make cmake ninja-build python3 python3-venv"


class Machine:
    """A scratch copy of the scripts, and a PATH of such programs."""

    def __init__(self, folder, driver):
        self.tree, self.programs = Path(folder) / "tree", Path(folder) / "programs"
        shutil.copytree(SOURCE / "scripts", self.tree / "scripts")
        self.programs.mkdir()
        texts = {"python3": PYTHON, "dpkg-query": DPKG_QUERY, "apt-get": APT_GET, "id": ID}
        if driver:
            texts["nvidia-smi"] = "#!/bin/bash\n"
        for name, text in texts.items():
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def bootstrap(self, *arguments, cuda=None, installed=TOOLS, **more):
        """(what it did, exit status, what it said)"""
        written = self.tree / "written"
        written.write_text("")
        environment = {
            name: value for name, value in os.environ.items() if name not in ["Torch_DIR", "CMAKE_PREFIX_PATH"]
        }
        environment |= {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "WRITTEN": str(written),
            "INSTALLED": installed,
            **more,
        }
        environment.pop("LIGHTLORA_CUDA", None)
        if cuda is not None:
            environment["LIGHTLORA_CUDA"] = cuda
        done = subprocess.run(
            [self.tree / "scripts/bootstrap.sh", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        return written.read_text().splitlines(), done.returncode, done.stdout + done.stderr


def machine(test, driver=False):
    with tempfile.TemporaryDirectory(prefix="lightlora-") as folder:
        test(Machine(folder, driver))


def pip(actions):
    return [line.removeprefix("pip ") for line in actions if line.startswith("pip ")]


def test_a_machine_without_a_driver_can_be_told_to_install_for_cuda(here):
    actions, code, said = here.bootstrap("--library", cuda="ON")
    assert code == 0 and actions == [f"pip {CUDA}"] and "LibTorch with CUDA" in said, (actions, said)
    again, code, said = here.bootstrap("--library", cuda="ON")
    assert code == 0 and not again and not said, (again, said)


def test_a_machine_with_a_driver_installs_for_cuda_by_itself_unless_told_not_to(here):
    assert pip(here.bootstrap("--library", cuda="OFF")[0]) == [CPU]
    # What came without its dependencies is not taken for the whole.
    assert pip(here.bootstrap("--library")[0]) == [CUDA]


def test_what_a_container_gets(here):
    actions, code, said = here.bootstrap(cuda="ON", installed="")
    assert code == 0 and pip(actions) == [CUDA], (actions, said)
    (packages,) = (line.split() for line in actions if line.startswith("apt "))
    assert {"g++", "cmake", "python3-venv", "libcli11-dev"} <= set(packages), packages
    assert not [name for name in packages if "cuda" in name or "nvidia" in name], packages


def test_the_library_alone_asks_for_no_package_of_the_application(here):
    actions, code, said = here.bootstrap("--library", "--tests", cuda="ON", installed="")
    assert code == 0 and pip(actions) == [CUDA], (actions, said)
    (packages,) = (line.split() for line in actions if line.startswith("apt "))
    assert {word for word in packages if not word.startswith("-")} == {"apt", *TOOLS.split(), "catch2"}, packages


def test_stand_ins_for_cuda_are_written_only_without_it(here):
    for cuda, torch, more in [("OFF", [CPU], ["stand_in"]), ("ON", [CUDA], [])]:
        shutil.rmtree(here.tree / ".deps", ignore_errors=True)
        actions, code, said = here.bootstrap("--tests", cuda=cuda)
        assert code == 0 and pip(actions) == [*torch, *TESTS], (cuda, actions, said)
        assert [line for line in actions if line == "stand_in"] == more, (cuda, actions)


def test_a_libtorch_that_is_named_is_taken_and_a_word_that_is_none_is_named(here):
    (here.tree / "torch").mkdir()
    (here.tree / "torch/TorchConfig.cmake").write_text("")
    actions, code, said = here.bootstrap("--library", cuda="ON", Torch_DIR=str(here.tree / "torch"))
    assert code == 0 and not actions, (actions, said)
    actions, code, said = here.bootstrap("--library", cuda="yes")
    assert code == 1 and not actions, (actions, said)
    assert said == "bootstrap: LIGHTLORA_CUDA: expected ON, OFF or AUTO, got 'yes'\n", said


def main():
    machine(test_a_machine_without_a_driver_can_be_told_to_install_for_cuda)
    machine(test_a_machine_with_a_driver_installs_for_cuda_by_itself_unless_told_not_to, driver=True)
    machine(test_what_a_container_gets)
    machine(test_the_library_alone_asks_for_no_package_of_the_application)
    machine(test_stand_ins_for_cuda_are_written_only_without_it)
    machine(test_a_libtorch_that_is_named_is_taken_and_a_word_that_is_none_is_named)
    print("6 passed, 0 failed")


if __name__ == "__main__":
    main()
