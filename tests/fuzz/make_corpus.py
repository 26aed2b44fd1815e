# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzzers: corpus/<target> for each. Python's standard library only.

The first word of a name is what the reader must say of the file: valid, trailing (accepted only if bytes behind the
last tensor are allowed) or invalid; of lora_file's what they hold: lora, embedding, both or none. fuzz_corpus_test.cpp
checks it. Seeds that the fuzzers found are named by their hash and carry no verdict.
"""

import io
import json
import pathlib
import struct
import zipfile

import corpus_methods
import gguf_corpus
import quantized_corpus

HERE = pathlib.Path(__file__).parent / "corpus"


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def text_entry(name="a", shape="[2]", offsets="[0,8]"):
    return f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()


LORA = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora."
SAFETENSORS = {
    "valid_empty": file({}),
    "valid_padded": file(b"\n {} \t  "),
    "valid_one": file({"a": entry("F32", [2], 0, 8)}, bytes(8)),
    "valid_scalar": file({"a": entry("F64", [], 0, 8)}, bytes(8)),
    "valid_metadata_null": file(b'{"__metadata__":null}'),
    "valid_extra_field": file(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{"y":null}]}}', b"x"),
    "valid_lora": file(
        {
            "__metadata__": {"format": "pt", "ss_network_dim": "4"},
            LORA + "down.weight": entry("F16", [1, 4], 0, 8),
            LORA + "up.weight": entry("BF16", [4, 1], 8, 16),
        },
        bytes(16),
    ),
    "valid_unsorted": file({"b": entry("U8", [3], 2, 5), "a": entry("BOOL", [2], 0, 2)}, bytes(5)),
    "valid_zero_sizes": file(
        {"a": entry("F32", [0, 5], 0, 0), "b": entry("I64", [1], 0, 8), "c": entry("F32", [0], 8, 8)}, bytes(8)
    ),
    "valid_sub_byte": file({"a": entry("F4", [2], 0, 1), "b": entry("F6_E2M3", [4], 1, 4)}, bytes(4)),
    "trailing_four": file({"a": entry("F32", [2], 0, 8)}, bytes(12)),
    "trailing_only": file({}, b"x"),
    "invalid_nothing": b"",
    "invalid_short": b"\x02\0\0\0\0\0\0",
    "invalid_length_only": struct.pack("<Q", 2),
    "invalid_length_zero": file(b"", length=0),
    "invalid_length_huge": file({}, length=2**64 - 1),
    "invalid_length_sign": file({}, length=2**63),
    "invalid_length_limit": file({}, length=100_000_000),
    "invalid_length_above": file({}, length=100_000_001),
    "invalid_hole": file({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)),
    "invalid_overlap": file({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)),
    "invalid_same_range": file({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}, bytes(2)),
    "invalid_truncated": file({"a": entry("F32", [2], 0, 8)}, bytes(7)),
    "invalid_twice": file(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "invalid_field_twice": file(b'{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}', b"x"),
    "invalid_metadata_twice": file(b'{"__metadata__":{"a":"1","a":"1"}}'),
    "invalid_metadata_number": file({"__metadata__": {"a": 1}}),
    "invalid_nul": file(b"{}\0"),
    "invalid_bom": file(b"\xef\xbb\xbf{}"),
    "invalid_utf8": file(b'{"__metadata__":{"a":"\xff"}}'),
    "invalid_surrogate": file(b'{"__metadata__":{"a":"\\ud800"}}'),
    "invalid_comma": file(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}', b"x"),
    "invalid_array": file(b"[]"),
    "invalid_dtype": file({"a": entry("f32", [2], 0, 8)}, bytes(8)),
    "invalid_half_byte": file({"a": entry("F4", [1], 0, 1)}, bytes(1)),
    "invalid_overflow": file(text_entry(shape="[2,18446744073709551614]"), bytes(8)),
    "invalid_overflow_zero": file(text_entry(shape="[0,18446744073709551615,2]", offsets="[0,0]")),
    "invalid_negative": file(text_entry(offsets="[-8,0]"), bytes(8)),
    "invalid_exponent": file(text_entry(offsets="[0,8e0]"), bytes(8)),
    "invalid_reversed": file(text_entry(shape="[0]", offsets="[8,0]"), bytes(8)),
    "invalid_name": file(text_entry(name=""), bytes(8)),
    "invalid_name_nul": file(text_entry(name="\\u0000"), bytes(8)),
    "invalid_deep": file(b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"),
    "invalid_lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "invalid_zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
    "invalid_pickle": b"\x80\x02}q\x00(X\x01\x00\x00\x00a",
    "invalid_html": b"<!DOCTYPE html><html></html>",
    "invalid_index": b'{"metadata":{},"weight_map":{"a":"x.safetensors"}}',
}
JSON = {
    "valid_config": json.dumps(
        {
            "r": 4,
            "lora_alpha": 4.0,
            "target_modules": ["to_q", "to_out.0"],
            "rank_pattern": {},
            "bias": "none",
            "task_type": None,
            "inference_mode": True,
        },
        indent=2,
    ).encode(),
    "valid_escapes": rb'["\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\u0000"]',
    "valid_utf8": '["\u00e9\u20ac\U0001f600\U0010ffff"]'.encode(),
    "valid_numbers": b"[0,-0,1,-1.5,1e5,1E+5,2e-7,123456789012345678901234567890]",
    "valid_white": b" \t\r\n[ { } , [ ] , true , false , null ] \n",
    "valid_deep": b"[" * 32 + b"]" * 32,
    "invalid_deep": b"[" * 33 + b"]" * 33,
    "invalid_nothing": b"",
    "invalid_open": b'{"a":[1,{"b":"c',
    "invalid_comma": b"[1,]",
    "invalid_zero": b"[01]",
    "invalid_fraction": b"[1.]",
    "invalid_escape": rb'["\x"]',
    "invalid_control": b'["\n"]',
    "invalid_overlong": b'["\xc0\x80"]',
    "invalid_surrogate_bytes": b'["\xed\xa0\x80"]',
    "invalid_surrogate": rb'["\udc00\ud800"]',
    "invalid_bom": b"\xef\xbb\xbf{}",
    "invalid_nul": b"{}\0",
    "invalid_twice": rb'{"a":{"b":1,"\u0062":2}}',
    "invalid_word": b"[nan]",
    "invalid_second": b"{}{}",
}


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(kind="FloatStorage", count=6, key="0"):
    return (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + b"K"
        + bytes([count])
        + b"tQ"
    )


def tensor(offset=0, sizes=(2, 3), strides=(3, 1), **more):
    pairs = b"".join(b"(" + b"".join(b"K" + bytes([v]) for v in values) + b"t" for values in (sizes, strides))
    place = storage(**more) + b"K" + bytes([offset])
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + pairs + b"\x89ccollections\nOrderedDict\n)RtR"


def pickle(*items, start=b"\x80\x02"):
    return start + b"}(" + b"".join(items) + b"u."


def archive(pickled, data=bytes(24), compression=zipfile.ZIP_STORED, name="archive/data.pkl"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for entry, content in ((name, pickled), ("archive/data/0", data), ("archive/version", b"3\n")):
            file.writestr(zipfile.ZipInfo(entry), content, compression)
    return stream.getvalue()


ONE = pickle(text("a"), tensor())
TORCH_FILE = {
    "valid_empty": pickle(),
    "valid_one": ONE,
    "valid_zip": archive(ONE),
    "valid_comment": archive(ONE)[:-2] + b"\x03\0PK\x05",
    "valid_view": pickle(text("a"), tensor(1, (2, 2), (2, 1)), text("b"), tensor(5, (1,), (1,), kind="HalfStorage")),
    "valid_zero_size": pickle(text("a"), tensor(0, (0, 3), (3, 1), count=0)),
    "valid_protocol_4": pickle(b"\x8c\x01a\x94", tensor(), start=b"\x80\x04\x95\xff\0\0\0\0\0\0\0"),
    "valid_embedding": pickle(
        text("string_to_token"),
        b"}" + text("*") + b"M\x09\x01s",
        text("string_to_param"),
        b"}" + text("*") + tensor() + b"s",
        text("name"),
        text("cat"),
        text("step"),
        b"J\0\0\0\x80",
    ),
    "valid_parameter": pickle(text("a"), b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88NtR"),
    "valid_parameter_dict": pickle(
        text("a"),
        b"ctorch.nn.modules.container\nParameterDict\n)\x81}"
        + text("_parameters")
        + b"}"
        + text("*")
        + tensor()
        + b"ssb",
    ),
    "valid_pairs": b"\x80\x02ccollections\nOrderedDict\n(((" + text("a") + tensor() + b"tltR.",
    "valid_memo": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "valid_numbers": pickle(
        text("a"), b"G\x3f\xf0\0\0\0\0\0\0", text("b"), b"\x8a\x02\xff\xff", text("c"), b"\x8a\x09" + b"\xff" * 9
    ),
    "valid_opaque": pickle(text("a"), b"cnumpy\ndtype\n(" + text("f4") + b"\x89\x88tR(K\x01Ntb"),
    "valid_shared": b"\x80\x02]q\x00(h\x00h\x00e.",
    "invalid_nothing": b"",
    "invalid_system": pickle(text("a"), b"cposix\nsystem\n(" + text("true") + b"tR"),
    "invalid_eval": b"\x80\x02c__builtin__\neval\n(" + text("1") + b"tR.",
    "invalid_stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    "invalid_module": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.",
    "invalid_class": b"\x80\x02(i__main__\nX\n.",
    "invalid_early": ONE[:-20],
    "invalid_protocol": b"\x80\x06}.",
    "invalid_text": b"\x80\x02X\x01\0\0\0\xff.",
    "invalid_beyond": pickle(text("a"), tensor(1)),
    "invalid_larger": pickle(text("a"), tensor(0, (4, 6), (0, 1))),
    "invalid_type": pickle(text("a"), tensor(kind="ComplexFloatStorage")),
    "invalid_copies": b"\x80\x02]("
    + b"NN\x86" * 100
    + b"eq\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 20
    + b".",
    "invalid_recalled": b"\x80\x02](" + text("a" * 20_000) + b"q\x00" + b"h\x00" * 2000 + b"e.",
    "invalid_zip_cut": archive(ONE)[:-30],
    "invalid_zip_compressed": archive(ONE, compression=zipfile.ZIP_DEFLATED),
    "invalid_zip_start": b"PK\x03\x04",
}
LAYER, TEXT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1", "text_model.encoder.layers.0.self_attn"
FLAT = "lora_unet_" + LAYER.replace(".", "_")
LORA_KEYS = {
    "valid": [
        f"{LAYER}.processor.to_q_lora.down.weight",
        f"unet.{LAYER}.processor.to_out_lora.up.weight",
        f"text_encoder.{TEXT}.to_q_lora.up.weight",
        f"text_encoder.{TEXT}.k_proj.to_k_lora.down.weight",
        f"text_encoder.{TEXT}.q_proj.lora_linear_layer.up.weight",
        f"unet.unet.{LAYER}.to_q.lora.down.weight",
        f"unet.{LAYER}.to_out.0.lora_A.weight",
        "unet.mid_block.resnets.0.conv1.lora_B.default.weight",
        f"text_encoder.{TEXT[11:]}.q_proj.lora_A.weight",
        f"base_model.model.{LAYER}.to_q.lora_A.weight",
        f"base_model.model.{TEXT}.q_proj.lora_magnitude_vector",
        "base_model.model.my.layer.hada_w1_a",
        f"{FLAT}_to_q.lora_down.weight",
        f"{FLAT}_to_q.alpha",
        f"{FLAT}_to_q.dora_scale",
        "lora_unet_conv_in.lora_mid.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        "lora_te1_encoder_layers_0_mlp_fc2.hada_t1",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lokr_w2_b",
        "lora_unet_output_blocks_5_2_conv.lokr_w1",
        "lora_unet_middle_block_1_proj_in.lora_A.weight",
        "lycoris_mid_block_attentions_0_proj_in.lokr_t2",
        f"unet.{LAYER}.processor.to_q_lora.down_aux.weight",
        f"unet.{LAYER}.to_q.lora.down_up.weight",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
        f"{FLAT}_to_q.diff",
        *corpus_methods.keys(FLAT, LAYER),
    ],
    "invalid": [
        "",
        ".",
        "unet.",
        "lora_unet_",
        "lora_unet_.alpha",
        "unet:0:up",
        "emb_params",
        "lora_unet_mid_block_attentions_0_proj_im.lora_up.weight",
        "unet.text_encoder.x.lora_A.weight",
        f"{FLAT}_to_q.oft_diag",
        "bundle_emb.cat.emb_params",
        "lora_unet_down_blocks_9999_attentions_0_proj_in.alpha",
        f"{LAYER}.to_q.weight",
    ],
}


def floats(count):
    return struct.pack(f"<{count}f", *(0.5 + i for i in range(count)))


def lora(tensors, **metadata):
    """A file of F32 tensors {name: shape} with growing values."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        header[name] = entry("F32", shape, len(data), len(data) + 4 * count)
        data += floats(count)
    return file(header, data)


def pair(down, up, rank=2, width=4, out=3):
    return {down: [rank, width], up: [out, rank]}


OLD = LAYER + ".processor.to_q_lora"
NATIVE = {
    "format": "lightlora",
    "format_version": "1",
    "basis_version": "1",
    "groups": "1",
    "0.variant": "light",
    "0.component": "unet",
    "0.layers": "a.{0.{x,y},1.x}",
    "0.in": "6",
    "0.out": "5",
    "0.rank": "2",
    "0.scale": "0.5",
    "0.init": "up_zero",
    "0.network_alpha": "1",
    "0.aux_in": "4",
    "0.aux_out": "3",
    "0.aux_seed": "7",
    "0.aux_init": "orthogonal",
}
KOHYA_PAIR = pair(f"{FLAT}_to_q.lora_down.weight", f"{FLAT}_to_q.lora_up.weight")
CONV = "lora_unet_mid_block_resnets_0_conv1"
XTI = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"] + [f"OUT{i:02}" for i in range(3, 12)]
LORA_FILE = {
    "lora_d0": lora(pair(f"{OLD}.down.weight", f"{OLD}.up.weight")),
    "lora_d2": lora(pair(f"unet.unet.{LAYER}.to_q.lora.down.weight", f"unet.unet.{LAYER}.to_q.lora.up.weight")),
    "lora_d4": lora(
        pair(f"unet.{LAYER}.to_q.lora.down.weight", f"unet.{LAYER}.to_q.lora.up.weight")
        | pair(
            f"text_encoder.{TEXT}.q_proj.lora_linear_layer.down.weight",
            f"text_encoder.{TEXT}.q_proj.lora_linear_layer.up.weight",
        ),
        lora_adapter_metadata=json.dumps(
            {"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True, "unet.alpha_pattern": {"attn1.*": 3}}
        ),
    ),
    "lora_peft": lora(
        pair(f"base_model.model.{LAYER}.to_q.lora_A.weight", f"base_model.model.{LAYER}.to_q.lora_B.weight")
    ),
    "lora_kohya": lora(KOHYA_PAIR | {f"{FLAT}_to_q.alpha": []}, ss_network_dim="2"),
    "lora_dora": lora(KOHYA_PAIR | {f"{FLAT}_to_q.dora_scale": [3, 1]}),
    "lora_locon": lora({f"{CONV}.lora_down.weight": [2, 4, 3, 3], f"{CONV}.lora_up.weight": [3, 2, 1, 1]}),
    "lora_tucker": lora(
        {
            f"{CONV}.lora_down.weight": [2, 4, 1, 1],
            f"{CONV}.lora_up.weight": [3, 2, 1, 1],
            f"{CONV}.lora_mid.weight": [2, 2, 3, 3],
        }
    ),
    "lora_loha": lora(
        {f"{FLAT}_to_q.hada_w{i}_{side}": shape for i in (1, 2) for side, shape in (("a", [3, 2]), ("b", [2, 4]))}
    ),
    "lora_lokr": lora(
        {f"{FLAT}_to_q.lokr_w1": [3, 2], f"{FLAT}_to_q.lokr_w2_a": [2, 2], f"{FLAT}_to_q.lokr_w2_b": [2, 3]}
    ),
    "lora_article": lora(
        {
            f"unet.{OLD}.down.weight": [2, 4],
            f"unet.{OLD}.up.weight": [3, 2],
            f"unet.{OLD}.down_aux.weight": [4, 6],
            f"unet.{OLD}.up_aux.weight": [5, 3],
        }
    ),
    **{name: lora(shapes) for name, shapes in corpus_methods.files(FLAT, CONV).items()},
    "lora_native": lora({"0.down": [3, 2, 4], "0.up": [3, 3, 2]}, **NATIVE),
    "embedding_diffusers": lora({"<cat>": [2, 3]}),
    "embedding_a1111": lora({"emb_params": [1, 3]}),
    "embedding_kohya_layers": lora({name: [1, 3] for name in XTI}),
    "embedding_p_plus": lora({f"<c-{i}-0>": [3] for i in range(16)} | {"<c>": [3]}),
    "embedding_layers": lora({"<cat>": [2, 1, 3]}, layers="down_blocks.0.attentions.{0,1}"),
    "both_bundle": lora(KOHYA_PAIR | {"bundle_emb.cat.emb_params": [1, 3]}),
    "embedding_torch": archive(TORCH_FILE["valid_embedding"]),
    "none_half": lora({f"{FLAT}_to_q.lora_down.weight": [2, 4]}),
    "none_ranks": lora({f"{FLAT}_to_q.lora_down.weight": [2, 4], f"{FLAT}_to_q.lora_up.weight": [3, 1]}),
    "none_native_nested": lora({"0.down": [3, 2, 4]}, **NATIVE | {"0.layers": "{" * 200}),
    "none_native_huge": lora({"0.down": [3, 2, 4]}, **NATIVE | {"0.in": "1" + "0" * 15}),
    "none_pattern": lora(
        pair(f"unet.{LAYER}.to_q.lora.down.weight", f"unet.{LAYER}.to_q.lora.up.weight"),
        lora_adapter_metadata=json.dumps({"unet.r": 2, "unet.rank_pattern": {"(.*)*(.*)*x": 3, "(": 1}}),
    ),
}


def main():
    keys = {f"{verdict}_{i}": name.encode() for verdict, names in LORA_KEYS.items() for i, name in enumerate(names)}
    folders = {"safetensors": SAFETENSORS, "json": JSON, "torch_file": TORCH_FILE}
    folders |= {"lora_keys": keys, "lora_file": LORA_FILE}
    folders |= {"gguf": gguf_corpus.GGUF, "quantized": quantized_corpus.QUANTIZED}
    for folder, seeds in folders.items():
        (HERE / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (HERE / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
