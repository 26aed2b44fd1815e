# SPDX-License-Identifier: Apache-2.0
"""LoRA files, embeddings and their configurations from strangers."""

import json
import os
import pickle
import shutil
import struct

from strangers_adapters import LAYER, Evil, native, recalled_text, text, torch_file
from strangers_support import Case, drawing, fifo, floats, run_cases, safetensors, zeros
from support import MODEL, SUBJECT, WIDTH


def to(kind, make, **flags):
    """convert_lora of what `make` writes into a folder."""

    def arguments(folder, out):
        more = [part for name, value in flags.items() for part in ("--" + name, value)]
        return ["--input", make(folder), "--to", kind, "--output", out, *more]

    return arguments


def inspected(make):
    return lambda folder: ["--input", make(folder), "--inspect"]


def peft(folder, config, layers=(LAYER[5:],)):
    tensors = {}
    for layer in layers:
        tensors[f"base_model.model.{layer}.lora_A.weight"] = floats(2, 4)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = floats(4, 2)
    text = config if isinstance(config, str) else json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config})
    (folder / "adapter_config.json").write_text(text)
    return safetensors(folder / "adapter_model.safetensors", tensors)


def peft_beside(make):
    def arguments(folder):
        path = peft(folder, {})
        (folder / "adapter_config.json").unlink()
        make(folder / "adapter_config.json")
        return ["--input", path, "--inspect"]

    return arguments


def lokr(left, right):
    def make(folder):
        return safetensors(
            folder / "a.safetensors", {LAYER + ".lokr_w1": floats(*left), LAYER + ".lokr_w2": floats(*right)}
        )

    return make


def tensors(folder, **roles):
    return safetensors(
        folder / "a.safetensors", {LAYER + "." + role.replace("__", "."): shape for role, shape in roles.items()}
    )


def long_keys(size, times):
    body = b"".join(b"h\x01" + b"N" + b"h\x01}s" for _ in range(0))
    inner = text("k" * size) + b"q\x01" + b"}" + b"(" + b"".join(text(str(i)) + b"N" for i in range(4)) + b"u"
    for _ in range(times):
        inner = b"}" + b"(" + b"h\x01" + inner + b"u"
    return b"\x80\x02" + body + inner + b"."


def storage(key, size):
    return (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("cpu") + b"M" + struct.pack("<H", size) + b"tQ"
    )


def long_storages(folder):
    """Many tensors of one storage whose name is long."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"(" + text("storage") + b"ctorch\nFloatStorage\n" + b"h\x01"
    tensor += text("cpu") + b"K\x04tQ" + b"K\x00" + b"K\x04\x85" + b"K\x01\x85" + b"\x89N" + b"tR"
    body = b"".join(text(f"t{i}") + tensor for i in range(20000))
    return torch_file(folder, b"\x80\x02" + text("1" * 200000) + b"q\x010}(" + body + b"u.", {"1" * 200: bytes(16)})


def shared_storage(folder):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(text("0"), 60000)
    tensor += b"K\x00" + b"M\x60\xea\x85" + b"K\x01\x85" + b"\x89N" + b"tR"
    body = b"".join(text(f"{LAYER}.{i}") + tensor for i in range(20000))
    return torch_file(folder, b"\x80\x02}(" + body + b"u.", {"0": bytes(240000)})


DEEP = "[" * 100_000 + "]" * 100_000
REGEXES = {f"(a|b|[c-f])+\\.{i}\\.(x|y)*to_q": 2 for i in range(200)}
CATASTROPHE = {"(((a*)*)*)*x": 2, "(x+x+)+y": 2}
NAMES = [f"{i}.attentions.0.transformer_blocks.0.attn1.to_q" for i in range(3)]
MANY = ",".join(f"m{i}" for i in range(300_000))


def embedding(make):
    return lambda folder: [*drawing(MODEL)[:2], "--prompt", "x", "--print_tokens", "--learned_embeds", make(folder)]


def draws(make):
    return lambda folder, out: [*drawing(MODEL), "--lora", make(folder), "--output", out]


def copied(folder):
    return shutil.copyfile(SUBJECT / "0_purple.png", folder / "p.png")


def token(name):
    return embedding(lambda folder: safetensors(folder / "e.safetensors", {name: floats(1, 4)}))


def case(name, make, *says, program="convert_lora", **more):
    return Case(name, program, make, says, **more)


CASES = [
    # What becomes a path.
    case("component ../x to peft", to("peft", lambda f: native(f, component="../../escaped")), "a.safetensors"),
    case("component / to peft", to("peft", lambda f: native(f, component="/tmp/escaped")), "a.safetensors"),
    case("component .. to peft", to("peft", lambda f: native(f, component="..")), "a.safetensors"),
    case("component with a line feed", to("peft", lambda f: native(f, component="u\nerror: x")), "a.safetensors"),
    # Kinds of files.
    case("a pipe as LoRA", inspected(lambda f: fifo(f / "a.safetensors")), "a.safetensors"),
    case("a device as LoRA", inspected(lambda f: zeros(f / "a.safetensors")), "a.safetensors"),
    case("a pipe as adapter_config.json", peft_beside(fifo), "adapter_config.json"),
    case("a device as adapter_config.json", peft_beside(zeros), "adapter_config.json"),
    case("a folder as adapter_config.json", peft_beside(os.mkdir), "adapter_config.json"),
    # Counts and sizes of native files.
    case("native: no groups", inspected(lambda f: native(f, groups="0")), "a.safetensors"),
    case("native: fewer than no groups", inspected(lambda f: native(f, groups="-3")), "a.safetensors"),
    case("native: groups near 2^63", inspected(lambda f: native(f, groups=str(2**63 - 1))), "a.safetensors"),
    case(
        "native: bases of a gigabyte",
        to("diffusers", lambda f: native(f, aux_in="1000000", **{"in": "1000000", "out": "1000000"})),
        "a.safetensors",
    ),
    case(
        "native: a wide layer of two values",
        to(
            "diffusers",
            lambda f: native(
                f,
                {"0.down": floats(100, 1, 1), "0.up": floats(100, 1, 1)},
                layers=",".join(f"{{a{i}}}"[1:-1] for i in range(100)).join("{}"),
                aux_in="1",
                aux_out="1",
                **{"in": "1000000", "out": "1000000"},
            ),
        ),
        "a.safetensors",
    ),
    case("native: rank 0", inspected(lambda f: native(f, rank="0")), "a.safetensors"),
    case("native: rank 2^62", inspected(lambda f: native(f, rank=str(2**62))), "a.safetensors"),
    case("native: a kernel of nothing", to("diffusers", lambda f: native(f, kernel="0 3 ")), "a.safetensors"),
    case("native: a kernel below nothing", to("diffusers", lambda f: native(f, kernel="-1 -1 ")), "a.safetensors"),
    case(
        "native: a kernel that overflows", to("kohya", lambda f: native(f, kernel="1024 1024 1024 ")), "a.safetensors"
    ),
    case(
        "native: lokr over a kernel of nothing", to("kohya", lambda f: native(f, variant="lokr", kernel="0 ")), "a.sa"
    ),
    case("native: a scale that is no number", to("diffusers", lambda f: native(f, scale="nan")), "a.safetensors"),
    case("native: an unknown start", inspected(lambda f: native(f, init="x\x1b[31m")), "a.safetensors"),
    case("native: an unknown variant", to("kohya", lambda f: native(f, variant="../x")), "a.safetensors"),
    case("native: no tensors", inspected(lambda f: native(f, {"0.x": None, "9.x": floats(1)})), "a.safetensors"),
    case(
        "native: layers without values",
        inspected(lambda f: native(f, {"0.x": ("F32", (300000, 0), b"")}, layers="{" + MANY + "}")),
        "a.sa",
    ),
    case("native: names in names", inspected(lambda f: native(f, layers="{" * 5000 + "}" * 5000)), "a.safetensors"),
    case("native: names that unfold", inspected(lambda f: native(f, layers="{a,b}" + "{a,b}" * 40)), "a.safetensors"),
    case("native: a version with escape codes", inspected(lambda f: native(f, format_version="\x1b[2J\nx")), "a.sa"),
    case("native: a frozen tensor alone", to("diffusers", lambda f: native(f, {"0.down_aux": floats(1, 4)})), "a.sa"),
    # Products.
    case("LoKr of 6 GB", to("diffusers", lokr((200, 200), (200, 200))), "a.safetensors"),
    case("LoKr that overflows", to("kohya", lokr((70000, 1), (70000, 1))), "a.safetensors"),
    case("LoKr without values", to("kohya", lokr((4, 4), (4, 4, 0, 0))), "a.safetensors"),
    case(
        "a Tucker core of 40 GB",
        to(
            "kohya",
            lambda f: tensors(
                f,
                lora_mid__weight=floats(100000, 1, 1, 1),
                lora_down__weight=floats(1, 100000, 1, 1),
                lora_up__weight=floats(4, 100000, 1, 1),
            ),
        ),
        "a.safetensors",
    ),
    case(
        "bases of the article of 40 GB",
        to(
            "kohya",
            lambda f: tensors(
                f,
                lora__down__weight=floats(100000, 1),
                lora__down_aux__weight=floats(1, 100000),
                lora__up__weight=floats(4, 100000),
            ),
        ),
        "a.safetensors",
    ),
    case(
        "a LoKr pair of 40 GB",
        to(
            "diffusers",
            lambda f: tensors(f, lokr_w1=floats(1, 1), lokr_w2_a=floats(100000, 1), lokr_w2_b=floats(1, 100000)),
        ),
        "a.safetensors",
    ),
    case(
        "no values",
        to("kohya", lambda f: tensors(f, lora_down__weight=floats(0, 4), lora_up__weight=floats(4, 0))),
        "a.sa",
    ),
    # Pickles.
    case("a pickle that runs a program", inspected(lambda f: torch_file(f, pickle.dumps({"a": Evil()}, 2))), "a.pt"),
    case("a pickle that recalls a text", inspected(lambda f: torch_file(f, recalled_text(1_000_000, 100_000))), "a.pt"),
    case("a pickle of long keys", inspected(lambda f: torch_file(f, long_keys(1_000_000, 200))), "a.pt"),
    case(
        "a pickle of millions of values",
        inspected(lambda f: torch_file(f, b"\x80\x02(" + b"N" * 7_900_000 + b"t.")),
        "a.pt",
    ),
    case("a pickle of long storages", inspected(long_storages), "a.pt"),
    case("a pickle that shares one storage", inspected(shared_storage), "a.pt"),
    case(
        "a pickle as embedding that recalls a text",
        embedding(lambda f: torch_file(f, recalled_text(1_000_000, 100_000))),
        "a.pt",
        program="text_to_image",
    ),
    case("a pickle as embedding that shares one storage", embedding(shared_storage), "a.pt", program="text_to_image"),
    # Configurations.
    case("deep JSON as adapter_config.json", inspected(lambda f: peft(f, DEEP)), "adapter_config.json"),
    case(
        "deep JSON in the metadata",
        inspected(
            lambda f: safetensors(
                f / "a.safetensors",
                {LAYER + ".lora_A.weight": floats(1, 4), LAYER + ".lora_B.weight": floats(4, 1)},
                {"lora_adapter_metadata": DEEP},
            )
        ),
        "a.safetensors",
    ),
    case(
        "a regular expression that nests",
        inspected(lambda f: peft(f, {"rank_pattern": {"(" * 5000 + ")" * 5000: 2}})),
        "adapter_config.json",
    ),
    case(
        "a regular expression that repeats itself",
        inspected(lambda f: peft(f, {"rank_pattern": {"((((a{900}){900}){900}){900})": 2}})),
        "adapter_config.json",
    ),
    case(
        "a regular expression that repeats nothing",
        inspected(lambda f: peft(f, {"rank_pattern": {"((((){900}){900}){900}){900}": 2}})),
        "adapter_config.json",
    ),
    case(
        "a broken regular expression", inspected(lambda f: peft(f, {"rank_pattern": {"[a-": 2}})), "adapter_config.json"
    ),
    case(
        "200 regular expressions",
        inspected(lambda f: peft(f, {"rank_pattern": REGEXES}, [f"down_blocks.{i}.to_q" for i in range(2000)])),
        status=0,
    ),
    case(
        "regular expressions that go back",
        inspected(lambda f: peft(f, {"rank_pattern": CATASTROPHE}, ["x" * 4000 + ".to_q"])),
        status=0,
    ),
    case(
        "a method with escape codes",
        inspected(lambda f: peft(f, {"peft_type": "\x1b[2J\nerror: x"})),
        "adapter_config.json",
    ),
    case("a rank of 2^80", inspected(lambda f: peft(f, {"r": 2**80})), "adapter_config.json"),
    case(
        "ranks of infinity", inspected(lambda f: peft(f, '{"r": 1e999, "lora_alpha": -1e999}')), "adapter_config.json"
    ),
    # Names.
    case(
        "a tensor with escape codes",
        inspected(lambda f: safetensors(f / "a.safetensors", {"\x1b[2J\n\u202eerror": floats(1)})),
        "a.sa",
    ),
    case(
        "a file with a line feed",
        inspected(lambda f: safetensors(f / "a\nconvert_lora: error: b", {"x": floats(1)})),
        "a\\nconvert",
    ),
    case(
        "a file with escape codes",
        inspected(lambda f: safetensors(f / "\x1b[31mred", {"x": floats(1)})),
        "\\x1b[31mred",
    ),
    case(
        "a file that is no UTF-8",
        inspected(lambda f: safetensors(os.fsdecode(os.fsencode(f) + b"/\xff\xfe"), {"x": floats(1)})),
        "\\xff\\xfe",
    ),
    case("a token with escape codes", token("\x1b[2J"), "e.safetensors", program="text_to_image"),
    case("a token with a line feed", token("a\nb"), "e.safetensors", program="text_to_image"),
    case("a token of a page", token("a" * 4000), "e.safetensors", program="text_to_image"),
    case("a token of spaces", token("   "), "e.safetensors", program="text_to_image"),
    case("a pipe as embedding", embedding(lambda f: fifo(f / "e.pt")), "e.pt", program="text_to_image"),
    case("a device as embedding", embedding(lambda f: zeros(f / "e.pt")), "e.pt", program="text_to_image"),
    case(
        "an embedding of layers that unfold",
        embedding(
            lambda f: safetensors(
                f / "e.safetensors", {f"t{i}": floats(1, 1, 4) for i in range(500)}, {"layers": "{a,b}" * 15}
            )
        ),
        "e.safetensors",
        program="text_to_image",
    ),
]


def examined(make):
    """--doctor of the file that a case converts or shows."""

    def arguments(folder, out):
        given = make(folder, out) if make.__code__.co_argcount == 2 else make(folder)
        return ["--input", given[given.index("--input") + 1], "--doctor"]

    return arguments


# What cannot be read may be a diagnosis too.
CASES += [
    case(f"doctor: {one.name}", examined(one.make), status=(0, 1)) for one in CASES if one.program == "convert_lora"
]
CASES += [
    # Other things in place of a LoRA.
    case(
        "an embedding as LoRA",
        draws(lambda f: safetensors(f / "e.safetensors", {"<toy>": floats(1, WIDTH)})),
        "e.safetensors",
        "it looks like a learned embedding",
        program="text_to_image",
    ),
    case("a picture as LoRA", draws(lambda f: copied(f)), "p.png", "picture", program="text_to_image"),
]

run_cases(CASES)
