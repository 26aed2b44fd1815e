# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the application's fuzzers: corpus/<target> for each. Python's standard library only.

The first word of a name is what the reader must say of the file: valid or invalid; fuzz_application_test.cpp
checks it. Seeds that the fuzzers found are named by their hash and carry no verdict.
"""

import json
import pathlib
import struct
import zlib

HERE = pathlib.Path(__file__).parent / "corpus"
LETTERS = [chr(c) for c in range(0x21, 0x7F)]
VOCABULARY = {
    **{letter: i for i, letter in enumerate(LETTERS)},
    **{letter + "</w>": len(LETTERS) + i for i, letter in enumerate(LETTERS)},
    "te": 300,
    "<|startoftext|>": 301,
    "<|endoftext|>": 302,
}
DEEP = "[" * 200 + "]" * 200


def parts(*texts):
    """tokenizer_config.json, vocab.json, merges.txt, added_tokens.json."""
    return "\0".join(text if isinstance(text, str) else json.dumps(text) for text in texts).encode()


def added(content):
    return {"added_tokens_decoder": {"400": {"content": content, "normalized": True, "special": False}}}


TOKENIZER = {
    "valid_vocabulary": parts("", VOCABULARY, "#version: 0.2\nt e\n"),
    "valid_added": parts(added("<w1>"), VOCABULARY, "t e"),
    "valid_added_nothing": parts(added(""), VOCABULARY, "t e"),
    "invalid_added_long": parts(added("a" * 300), VOCABULARY, "t e"),
    "invalid_id": parts("", VOCABULARY, "t e", {"x": -1}),
    "invalid_deep": parts("", "{" + '"a":' + DEEP + "}", "t e"),
}
UNET = {"layers_per_block": 2, "block_out_channels": [32, 64], "norm_num_groups": 8, "sample_size": 64}
MODEL_CONFIG = {
    "valid_unet": json.dumps({**UNET, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}).encode(),
    "valid_large": json.dumps({**UNET, "layers_per_block": 2**31, "block_out_channels": [2**40]}).encode(),
    "invalid_deep": ('{"a":' + DEEP + "}").encode(),
    "invalid_list": b"[]",
}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*texts, width=4, height=4):
    rows = zlib.compress(b"\0" * (3 * width + 1) * height)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(texts) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def packed(size):
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * size, 9))


def bmp(rows, height=4):
    head = b"BM" + struct.pack("<IHHI", 102, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, 4, height, 1, 24, 0, 0, 1, 1, 0, 0)
    return head + b"\xff" * 12 * rows


PICTURE = {
    "valid_png": png(chunk(b"tEXt", b"parameters\0x\nSteps: 1, Seed: 1")),
    "valid_texts": png(*[packed(3_000_000)] * 8),
    "valid_bmp": bmp(4),
    "invalid_bmp_cut": bmp(2),
    "invalid_bmp_claim": bmp(2, height=16_580_355),
    "invalid_png_cut": png()[:-40],
    "invalid_png_size": png(width=4)[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png()[24:],
    "invalid_gif_size": b"GIF89a" + struct.pack("<HHBBB", 60000, 2000, 0x80, 0, 0) + bytes(6) + b";",
}
SETTINGS = {
    "valid_flags": b'rank = 4\nprompt = "a cat"\nlora = ["a", "b"]\nflag = true\nrate = 1e-4\n',
    "valid_table": b"[training]\nrank = 4\n",
    "valid_large_number": b"a = 719971e97\n",  # which toml++ would cast to a whole number
    "invalid_letter": "a = 7\u01e4\n".encode(),
    "invalid_keys": b"a" + b".a" * 2000 + b" = 1\n",
    "invalid_deep": b"a = " + DEEP.encode() * 2 + b"\n",
    "invalid_date": b"a = 1979-05-27\n",
    "invalid_header": b'[{"prompt": "a cat"}]',  # which toml++ would end a build for debugging over
}
DATA_FOLDER = {
    "valid_nothing": b"",
    "valid_caption": b"\0a cat\non a mat",
    "valid_metadata": b'{"file_name": "1.png", "text": "a cat"}\n\n',
    "invalid_deep": b'{"file_name": ' + DEEP.encode() + b"}",
    "invalid_elsewhere": b'{"file_name": "../../etc/1.png", "text": "a"}',
    "invalid_number": b'{"file_name": "1.png", "text": 5}',
    "invalid_half": b'{"file_name": "1.p',
    "invalid_long_name": b'{"file_name": "' + b"G" * 300 + b'.png", "text": "a"}',
}
EMOJI_LIST = {
    "valid_list": b"# group: Objects\n1F916 ; fully-qualified # x E1.0 robot\n2764 FE0F ; fully-qualified # y E0.6 red heart\n",
    "invalid_nothing": b"# group: Objects\n",
    "invalid_number": b"F" * 40 + b" ; fully-qualified # x E1.0 robot\n",
    "invalid_long": b"1F916 ; fully-qualified # " + b"x" * 20_000 + b"\n",
}
TRAINING_LISTS = {
    "valid_lines": b"# prompts\na cat --w 64 --h 64 --d 1 --l 7.5 --s 20 --n a dog\n\na dog --d -1\n",
    "valid_json": b'[{"prompt": "a cat", "width": 64, "sample_steps": 4}, "a dog --s 3"]',
    "valid_toml": b'[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a cat"\n',
    "valid_dataset": b'[general]\nflip_aug = true\n[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "x"\n',
    "invalid_latin": b"a caf\xe9\n",
}
PARAMETERS = {
    "valid_settings": b"a cat <lora:x:0.5>\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64",
    "valid_quoted": b'a cat\nSteps: 4, Seed: 1, LoRA files: "[\\"a; b\\", \\"c\\"]", Version: x\nfurther: lines\n',
    "valid_odd_quotes": b'a\r\r\nNegative prompt:  b\nSteps: 4, A: "\\x", B: "a"b", C: "a\\\\", Seed: 1, D: \xff " e',
    "invalid_nothing": b"",
    "invalid_text": b"a cat\non a mat",
}


def lora(*names, metadata=None):
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name in names:
        header[name] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [len(data), len(data) + 16]}
        data += struct.pack("<4f", 1, 2, 3, 4)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DOCTOR = {
    "valid_kohya": lora(
        "lora_unet_a_to_q.lora_down.weight", "lora_unet_a_to_q.lora_up.weight", metadata={"ss_network_dim": "2"}
    ),
    "valid_flux": lora("transformer.a.to_q.lora_A.weight", "transformer.a.to_q.lora_B.weight"),
    "valid_one_sided": lora("lora_te1_a_q_proj.lora_up.weight", "lora_te1_b.lokr_w1", "x"),
    "invalid_nothing": b"",
    "invalid_cut": lora("a.lora_A.weight")[:-4],
}
TRANSFORMER_LORA = {
    "valid_flux": lora(
        "lora_unet_double_blocks_0_img_mod_lin.lora_down.weight", "lora_unet_double_blocks_0_img_mod_lin.lora_up.weight"
    ),
    "valid_parts": lora(
        *[f"transformer.layers.0.attention.to_{x}.lora_{side}.weight" for x in "qv" for side in "AB"],
        metadata={"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 4}'},
    ),
    "valid_halves": lora("transformer.norm_out.linear.lora_A.weight", "transformer.norm_out.linear.lora_B.weight"),
    "valid_methods": lora(
        *[f"lora_unet_layers_0_attention_out.hada_w{i}_{side}" for i in "12" for side in "ab"],
        *[f"lora_unet_layers_1_attention_out.lokr_w{i}" for i in "12"],
    ),
    "invalid_unet": lora("unet.mid_block.attentions.0.proj_in.lora_A.weight"),
    "invalid_one_sided": lora("diffusion_model.layers.0.attention.qkv.lora_A.weight"),
    "invalid_metadata": lora(
        "transformer.layers.0.attention.to_q.lora_A.weight",
        "transformer.layers.0.attention.to_q.lora_B.weight",
        metadata={"lora_adapter_metadata": DEEP},
    ),
}
REGEX = {
    "1": b"(.*\\.)?(down_blocks\\.[01]\\.(attn|ff)\\d{1,2}\\.to_[^qk])\ndown_blocks.0.attn1.to_v",
    "2": b"(((a*)*)*)*x\naaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "3": b"((((){900}){900}){900}){900}",
}


def main():
    for folder, seeds in (
        ("tokenizer", TOKENIZER),
        ("model_config", MODEL_CONFIG),
        ("picture", PICTURE),
        ("settings", SETTINGS),
        ("data_folder", DATA_FOLDER),
        ("emoji_list", EMOJI_LIST),
        ("training_lists", TRAINING_LISTS),
        ("parameters", PARAMETERS),
        ("doctor", DOCTOR),
        ("transformer_lora", TRANSFORMER_LORA),
        ("regex", REGEX),
    ):
        (HERE / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (HERE / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
