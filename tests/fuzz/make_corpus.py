# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzzers: corpus/safetensors and corpus/json. Python's standard library only.

The first word of a name is what the reader must say of the file: valid, trailing (accepted only if bytes
behind the last tensor are allowed) or invalid. fuzz_corpus_test.cpp checks it. Seeds that the fuzzers
found are named by their hash and carry no verdict.
"""

import json
import pathlib
import struct

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
    "valid_lora": file({"__metadata__": {"format": "pt", "ss_network_dim": "4"},
                        LORA + "down.weight": entry("F16", [1, 4], 0, 8),
                        LORA + "up.weight": entry("BF16", [4, 1], 8, 16)}, bytes(16)),
    "valid_unsorted": file({"b": entry("U8", [3], 2, 5), "a": entry("BOOL", [2], 0, 2)}, bytes(5)),
    "valid_zero_sizes": file({"a": entry("F32", [0, 5], 0, 0), "b": entry("I64", [1], 0, 8),
                              "c": entry("F32", [0], 8, 8)}, bytes(8)),
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
    "invalid_twice": file(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                          b'"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
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
    "valid_config": json.dumps({"r": 4, "lora_alpha": 4.0, "target_modules": ["to_q", "to_out.0"],
                                "rank_pattern": {}, "bias": "none", "task_type": None,
                                "inference_mode": True}, indent=2).encode(),
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


def main():
    for folder, seeds in (("safetensors", SAFETENSORS), ("json", JSON)):
        (HERE / folder).mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (HERE / folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
