# SPDX-License-Identifier: Apache-2.0
"""The archive of the programs: it runs in a root that has glibc and nothing else, and what lies beside the programs is
made from them."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(os.environ["LIGHTLORA_SOURCE_DIR"])
BIN = pathlib.Path(os.environ["LIGHTLORA_BIN"])
ASSETS = SOURCE / "examples/stable_diffusion/assets"
sys.path.insert(0, str(SOURCE / "scripts/release"))

import make_release  # noqa: E402
import sbom  # noqa: E402
from program_help import PROGRAMS, help_of  # noqa: E402


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def run(*command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def enter(root, *command):
    """Runs a command of the release as if `root`, with the kernel's own folders, were the whole file system."""
    script = """root=$1; shift
for folder in proc dev; do mount --rbind "/$folder" "$root/$folder" || exit; done
exec chroot "$root" "$@" """
    tools = {"OMP_NUM_THREADS": "1", "PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    return run(
        "unshare", "--map-root-user", "--mount", "/bin/sh", "-c", script, "sh", root, *command, env=tools, cwd="/"
    )


def check_bare_root(root, release):
    for name, path in sbom.loaded_libraries(tuple(release / "bin" / name for name in PROGRAMS)).items():
        if make_release.GLIBC.fullmatch(name):
            target = root / "lib/x86_64-linux-gnu" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    (root / "lib64").mkdir()
    loader = next(pathlib.Path("/lib64").glob("ld-linux*"))
    shutil.copy2(loader.resolve(), root / "lib64" / loader.name)
    (root / "tmp").mkdir()
    (root / "proc").mkdir()
    (root / "dev").mkdir()
    shutil.copytree(ASSETS / "base", root / "base")
    program = "/opt/anywhere/bin/text_to_image"
    assert "text_to_image" in enter(root, program, "--version")
    draw = ["--prompt", "a red apple", "--num_inference_steps", "2", "--seed", "1", "--device", "cpu"]
    model = "--pretrained_model_name_or_path"
    enter(root, program, model, "/base", *draw, "--output", "/tmp/a.png")
    assert (root / "tmp/a.png").read_bytes()[:4] == b"\x89PNG"
    assert not (root / "bin").exists() and not (root / "usr").exists()


def check_texts(release):
    for name in PROGRAMS:
        flags = help_of(BIN, name).flags
        page = (release / f"share/man/man1/{name}.1").read_text().replace("\\-", "-")
        bash = release / f"share/bash-completion/completions/{name}"
        zsh = (release / f"share/zsh/site-functions/_{name}").read_text()
        assert len(flags) > 10, name
        for flag in flags:
            assert flag.name in page and flag.name in bash.read_text() and flag.name + "[" in zsh, (name, flag)
        script = f"""source {bash}
COMP_WORDS=({name} --se); COMP_CWORD=1; _lightlora_{name}; echo "${{COMPREPLY[@]}}"
COMP_WORDS=({name} --device c); COMP_CWORD=2; _lightlora_{name}; echo "${{COMPREPLY[@]}}" """
        words = run("bash", "-uc", script).splitlines()
        if name == "text_to_image":
            assert words[0] == "--seed --seeds" and words[1].startswith("cpu cuda"), words
    if shutil.which("groff"):
        page = run("groff", "-man", "-Tutf8", release / "share/man/man1/convert_lora.1")
        assert "CONVERT_LORA(1)" in page, page


def check_bill(release):
    bill = json.loads((release / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["specVersion"] == "1.5"
    names = {part["name"]: part for part in bill["components"]}
    for name in ["torch", "libpng16-16", "nlohmann-json3-dev", "libcli11-dev", "libstb-dev", "clip_tokenizer", "base"]:
        assert name in names and names[name]["version"] and names[name]["licenses"], (name, names.get(name))
    for part in bill["components"]:
        assert part.get("licenses"), f"no license for {part['name']}: add it to scripts/release/sbom.py"
    referred = {part["bom-ref"] for part in bill["components"]}
    assert set(bill["dependencies"][0]["dependsOn"]) == referred and len(referred) == len(bill["components"])
    libraries = {path.name for path in (release / "lib").iterdir()}
    assert {"libtorch_cpu.so", "libc10.so", "libpng16.so.16", "libstdc++.so.6"} <= libraries
    assert not any(make_release.GLIBC.fullmatch(name) for name in libraries), libraries


def main():
    if not (BIN / "text_to_image").exists():
        skip("the programs are not built")
    for tool in ("dpkg-query", "readelf", "cmake", "unshare"):
        if not shutil.which(tool):
            skip(f"needs {tool}")
    torch = sbom.loaded_libraries((BIN / "text_to_image",))["libtorch_cpu.so"]
    if "site-packages" not in torch.parts:
        skip("LibTorch is not that of a wheel, of which the bill of materials knows")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "root"
        release = root / "opt/anywhere"
        release.parent.mkdir(parents=True)
        make_release.stage(BIN, release)
        check_texts(release)
        check_bill(release)
        binds = "mount --rbind /proc /proc && mount --rbind /dev /dev"
        done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", binds], capture_output=True)
        if done.returncode != 0:
            skip("no name spaces for users here: the archive was made, and not run in a bare root")
        check_bare_root(root, release)


if __name__ == "__main__":
    main()
