# SPDX-License-Identifier: Apache-2.0
"""Folders of models and tokenizers, and models in one file, from strangers."""

import gzip
import json
import os
import pickle

from strangers_adapters import Evil, recalled_text, torch_file
from strangers_support import Case, drawing, fifo, floats, model_folder, run_cases, safetensors, training, zeros
from support import CHANNELS, MODEL, SUBJECT

DEEP = "[" * 100_000 + "]" * 100_000
MANY = "[" + "0," * 3_000_000 + "0]"


def tokens(changes):
    """Reads the tokenizer alone."""
    return lambda folder: [
        "--pretrained_model_name_or_path",
        model_folder(folder, changes),
        "--prompt",
        "a teddy bear",
        "--print_tokens",
    ]


def draws(changes):
    """Reads the whole model."""
    return lambda folder, out: [*drawing(model_folder(folder, changes)), "--output", out]


def changed(part, **fields):
    path = MODEL / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    return {f"{part}/{path.name}": json.dumps({**json.loads(path.read_text()), **fields})}


def tokenizer(**fields):
    path = MODEL / "tokenizer/tokenizer_config.json"
    return {"tokenizer/tokenizer_config.json": json.dumps({**json.loads(path.read_text()), **fields})}


def added(count, name="w{}"):
    return tokenizer(added_tokens_decoder={str(5000 + i): {"content": name.format(i)} for i in range(count)})


def index(**fields):
    names = json.loads((MODEL / "model_index.json").read_text())
    return {"model_index.json": json.dumps({**names, **fields})}


def full_pipeline(changes, arrange=None):
    def arguments(folder, out):
        model = model_folder(folder, changes)
        if arrange:
            arrange(model)
        return [*training("textual_inversion", model, SUBJECT, out), "--save_as_full_pipeline"]

    return arguments


def merges_alone(make):
    """A tokenizer of OpenAI's merges alone."""

    def arguments(folder):
        model = model_folder(folder)
        for name in ("vocab.json", "merges.txt"):
            (model / "tokenizer" / name).unlink()
        make(model / "tokenizer/clip_merges.txt.gz")
        return ["--pretrained_model_name_or_path", model, "--prompt", "x", "--print_tokens"]

    return arguments


def single_file(metadata, beside=None):
    def arguments(folder, out):
        names = ("model.diffusion_model.a", "first_stage_model.a", "cond_stage_model.transformer.a")
        path = safetensors(folder / "m.safetensors", {name: floats(1) for name in names}, metadata)
        if beside:
            beside(folder)
        return [*drawing(path), "--output", out]

    return arguments


def in_one_file(make):
    return lambda folder, out: [*drawing(make(folder)), "--output", out]


def extracts(make):
    """The LoRA that is the difference of a stranger's model and ours."""

    def arguments(folder, out):
        return ["--extract_from", make(folder), "--base", MODEL, "--rank", 2, "--to", "kohya", "--output", out]

    return arguments


def starts(make):
    """A picture that begins with latents of a file."""
    return lambda folder, out: [*drawing(MODEL), "--initial_latents", make(folder), "--output", out]


def latents(shape, name="latents", count=None):
    values = floats(*(count or shape))[2]
    return starts(lambda folder: safetensors(folder / "l.safetensors", {name: ("F32", shape, values)}))


def link_to_much(model):
    """A link that leads out of the model, to more than a model is."""
    elsewhere = model.parent / "elsewhere"
    elsewhere.mkdir()
    with open(elsewhere / "disk", "wb") as file:
        file.truncate(70 * 10**9)  # takes no room
    (model / "vae/more").symlink_to(elsewhere)


def as_the_cache_keeps_it(model):
    """Every file is a link to one of a number, as in Hugging Face's cache."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in model.rglob("*") if not path.is_dir())):
        path.resolve().rename(blobs / str(number)) if not path.is_symlink() else (blobs / str(number)).symlink_to(
            path.resolve()
        )
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))


def missing_parts(out):
    parts = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "model_index.json")
    wrong = [part for part in parts if (out / part).is_symlink() or not (out / part).is_file()]
    return f"missing, or a link: {wrong}" if wrong else ""


def case(name, make, *says, program="text_to_image", **more):
    return Case(name, program, make, says, **more)


UNET, VAE, TEXT = "unet/config.json", "vae/config.json", "text_encoder/config.json"
HUGE = 2**31

CASES = [
    # What becomes a path.
    case(
        "a part ../x in model_index.json",
        full_pipeline(index(**{"../../escaped": ["a", "b"]})),
        "model_index.json",
        program="textual_inversion",
    ),
    case(
        "a part .. in model_index.json",
        full_pipeline(index(**{"..": ["a", "b"]})),
        "model_index.json",
        program="textual_inversion",
    ),
    case(
        "a part /etc in model_index.json",
        full_pipeline(index(**{"/etc": ["a", "b"]})),
        "model_index.json",
        program="textual_inversion",
    ),
    case(
        "a model of links", full_pipeline({}, as_the_cache_keeps_it), program="textual_inversion", status=0, seconds=120
    ),
    # Kinds and sizes of files.
    *[
        case(f"{what} as {name}", draws({name: make}), name.split("/")[-1])
        for name in (
            "model_index.json",
            UNET,
            "scheduler/scheduler_config.json",
            "unet/diffusion_pytorch_model.safetensors",
        )
        for what, make in (("a pipe", fifo), ("a device", zeros))
    ],
    *[
        case(f"{what} as {name}", tokens({name: make}), name.split("/")[-1])
        for name in (
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer_config.json",
            "tokenizer/added_tokens.json",
        )
        for what, make in (("a pipe", fifo), ("a device", zeros))
    ],
    *[case(f"deep JSON as {name}", draws({name: DEEP}), name) for name in ("model_index.json", UNET, TEXT)],
    *[
        case(f"deep JSON as {name}", tokens({name: DEEP}), name)
        for name in ("tokenizer/vocab.json", "tokenizer/tokenizer.json")
    ],
    case("an object of deep JSON", draws({UNET: '{"a":' + DEEP + "}"}), UNET),
    case("an object of objects", draws({UNET: '{"a":' * 50_000 + "1" + "}" * 50_000}), UNET),
    case("three million values", draws({UNET: '{"a":' + MANY + "}"}), UNET),
    case("a list as model_index.json", draws({"model_index.json": "[]"}), "model_index.json"),
    case("half a model_index.json", draws({"model_index.json": '{"unet": ['}), "model_index.json"),
    # Counts and shapes.
    *[
        case(f"unet: {field} {value}", draws(changed("unet", **{field: value})), UNET)
        for field, value in (
            ("layers_per_block", HUGE),
            ("layers_per_block", [2, HUGE]),
            ("layers_per_block", -1),
            ("layers_per_block", 2**63),
            ("transformer_layers_per_block", HUGE),
            ("block_out_channels", [HUGE * 32] * 2),
            ("block_out_channels", [32] * 10_000),
            ("block_out_channels", []),
            ("block_out_channels", {}),
            ("norm_num_groups", 0),
            ("attention_head_dim", 0),
            ("cross_attention_dim", HUGE),
            ("in_channels", HUGE),
            ("conv_in_kernel", HUGE),
            ("sample_size", HUGE),
            ("sample_size", 0),
            ("time_embedding_dim", HUGE),
            ("down_block_types", ["x\x1b[2J\n"] * 2),
            ("act_fn", "x" * 100_000),
            ("dropout", 1e308),
        )
    ],
    *[
        case(f"vae: {field} {value}", draws(changed("vae", **{field: value})), VAE)
        for field, value in (
            ("layers_per_block", HUGE),
            ("block_out_channels", [HUGE, HUGE]),
            ("latent_channels", 0),
            ("norm_num_groups", HUGE),
            ("scaling_factor", 0),
        )
    ],
    *[
        case(f"text encoder: {field} {value}", draws(changed("text_encoder", **{field: value})), TEXT)
        for field, value in (
            ("num_hidden_layers", HUGE),
            ("hidden_size", HUGE),
            ("vocab_size", HUGE),
            ("intermediate_size", HUGE),
            ("num_attention_heads", 0),
            ("max_position_embeddings", HUGE),
        )
    ],
    *[
        case(f"scheduler: {field} {value}", draws(changed("scheduler", **{field: value})), "scheduler_config.json")
        for field, value in (
            ("num_train_timesteps", 2**40),
            ("num_train_timesteps", 0),
            ("num_train_timesteps", -1),
            ("steps_offset", -5),
            ("steps_offset", 2**62),
            ("trained_betas", [0.5, 0.6]),
            ("trained_betas", [0.5] * 200_000),
            ("beta_start", -1),
            ("beta_end", 1e308),
            ("prediction_type", "x\n"),
        )
    ],
    # Tokenizers.
    case("an added token without text", tokens(added(1, "")), status=0),
    case("200,000 added tokens", tokens(added(200_000)), status=0),
    case("20,000 added tokens that begin alike", tokens(added(20_000, "a" * 200 + "{}")), status=0),
    case("an added token of a page", tokens(added(1, "a" * 5000)), "tokenizer"),
    *[
        case(f"an added token with {field} 5", tokens(tokenizer(added_tokens_decoder={"5000": fields})), "tokenizer")
        for field in ("content", "single_word", "normalized", "special")
        for fields in [{"content": "w", field: 5}]
    ],
    *[
        case(f"added tokens that are {value}", tokens(tokenizer(added_tokens_decoder=value)), "tokenizer")
        for value in (5, "x", {"5000": 5}, {"5000": []}, {"x": {"content": "y"}}, {"-1": {"content": "y"}})
    ],
    case("an id near 2^63", tokens(tokenizer(added_tokens_decoder={str(2**63 - 1): {"content": "x"}})), "tokenizer"),
    case("an id below 0", tokens({"tokenizer/added_tokens.json": '{"x": -5}'}), "added_tokens.json"),
    case("an id of 1.5", tokens({"tokenizer/added_tokens.json": '{"x": 1.5}'}), "added_tokens.json"),
    case("an id that is a text", tokens({"tokenizer/added_tokens.json": '{"x": "y"}'}), "added_tokens.json"),
    case("a vocabulary of texts", tokens({"tokenizer/vocab.json": '{"a": "b"}'}), "vocab.json"),
    case("merges without an end", tokens({"tokenizer/merges.txt": "a " * 1_000_000}), "merges.txt"),
    case("merges with escape codes", tokens({"tokenizer/merges.txt": "\x1b[2J\n"}), "merges.txt"),
    case("a length of 3e9", tokens(tokenizer(model_max_length=3_000_000_000)), status=0),
    case("a length of nothing", tokens(tokenizer(model_max_length=0)), "tokenizer"),
    case(
        "merges that unpack to 10 GB",
        merges_alone(lambda path: path.write_bytes(gzip.compress(b"\0" * 100_000_000))),
        "clip_merges.txt.gz",
    ),
    case("merges as a pipe", merges_alone(fifo), "clip_merges.txt.gz"),
    # Weights.
    case(
        "weights of another model",
        draws({"unet/diffusion_pytorch_model.safetensors": lambda path: safetensors(path, {"x": floats(1)})}),
        "unet",
    ),
    case(
        "an index of files elsewhere",
        draws(
            {
                "unet/diffusion_pytorch_model.safetensors": lambda path: None,
                "unet/diffusion_pytorch_model.safetensors.index.json": '{"weight_map": {"a": "../../../etc/passwd"}}',
            }
        ),
        "index.json",
    ),
    # A model in one file.
    case("deep JSON in a model file", single_file({"lightlora.config": DEEP}), "m.safetensors"),
    case("a pipe as a model's yaml", single_file(None, lambda folder: fifo(folder / "m.yaml")), "m."),
    case("a model file without blocks", single_file(None), "m.safetensors"),
    case("a model file with escape codes", single_file({"modelspec.prediction_type": "\x1b[2J\n"}), "m.safetensors"),
]

for how, program in ((in_one_file, "text_to_image"), (extracts, "convert_lora")):
    CASES += [
        case(f"{program}: {name}", how(make), says, program=program)
        for name, make, says in [
            (
                "a .ckpt that runs a program",
                lambda f: torch_file(f, pickle.dumps({"a": Evil()}, 2), name="m.ckpt"),
                "m.",
            ),
            ("a .ckpt that recalls a text", lambda f: torch_file(f, recalled_text(10**6, 10**5), name="m.ckpt"), "m."),
            (
                "a .ckpt of many values",
                lambda f: torch_file(f, b"\x80\x02(" + b"N" * 10**6 + b"t.", name="m.ckpt"),
                "m.",
            ),
            ("a pipe as .ckpt", lambda f: fifo(f / "m.ckpt"), "m.ckpt"),
            ("a device as .ckpt", lambda f: zeros(f / "m.ckpt"), "m.ckpt"),
            ("a device as .safetensors", lambda f: zeros(f / "m.safetensors"), "m.safetensors"),
            ("a file without a model", lambda f: safetensors(f / "m.safetensors", {"\x1b[2J": floats(1)}), "m.s"),
            ("deep JSON in a folder", lambda f: model_folder(f, {UNET: DEEP}), "config.json"),
        ]
    ]
CASES += [
    case("a link to a disk in a model", full_pipeline({}, link_to_much), "vae/more", program="textual_inversion"),
    case("latents of another name", latents((1, CHANNELS, 8, 8), name="\x1b[2J"), "l.safetensors"),
    case("latents of five dimensions", latents((1, CHANNELS, 8, 8, 1)), "l.safetensors"),
    case("latents of three channels", latents((1, 3, 8, 8)), "l.safetensors"),
    case("no latents at all", latents((1, CHANNELS, 0, 8)), "l.safetensors"),
    case("latents of 100,000 pictures", latents((100_000, CHANNELS, 1, 1)), "l.safetensors", "--allow_large"),
    case("latents of a huge picture", latents((1, CHANNELS, 1000, 1000)), "l.safetensors", "--allow_large"),
    case("latents of less than their shape", latents((1, CHANNELS, 2**20, 2**20), count=(4,)), "l.safetensors"),
    case("a pipe as latents", starts(lambda f: fifo(f / "l")), "in/l"),
    case("a device as latents", starts(lambda f: zeros(f / "l")), "in/l"),
]

run_cases(CASES)
