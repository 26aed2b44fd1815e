# SPDX-License-Identifier: Apache-2.0
"""Makes the numbers that tests/stable_diffusion/{tokenizer,clip}_test.cpp compare with.

Made with Python 3.11, torch 2.11.0 (CPU), transformers 5.23.0, tokenizers 0.23.3, safetensors 0.8.0:

    python tests/parity/make_text.py

tests/parity/data/tokenizer_demo is the tokenizer of an early small model of ours and is read, not written.
The script writes two more tokenizers in the other forms that published folders have, the prompts,
and the ids that transformers' CLIPTokenizer gives for each (`tokenizer_ids.json`); and two text
encoders with random weights (fp16) and what transformers' CLIPTextModel computes with them in fp64.
"""

import json
import os
import pathlib
import random
import shutil
import unicodedata

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

transformers.logging.set_verbosity_error()
DATA = pathlib.Path(__file__).parent / "data"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

NOUNS = ["fox", "teapot", "lighthouse", "dragon", "astronaut", "bowl of ramen", "cathedral", "sks dog"]
STYLES = [
    "oil painting of a {}, baroque, dramatic lighting",
    "a photo of a {} on the beach, 35mm, f/1.8, bokeh",
    "{} (((masterpiece))), best quality, 8k uhd, [low quality:0.3]",
    "the {}'s shadow; it's late & nobody'll know, they've left, I'm sure we'd've seen",
    "A {} — “quoted” … and ‘single’ 100% #1 @home http://example.org/a_b?c=d",
]

WRITTEN = """\
║.║,║!║!!║!!!?!║...║a║A║aA1b2C3║  leading and trailing  ║tab\there║line\nbreak\r\nand more
don't║DON'T║y'all'd've║'s║''s║'tis║rock 'n' roll║it’s║s't're've'm'll'd║I'M║we'LL║'Re
<|startoftext|>║<|endoftext|>║a<|endoftext|>b║x <|startoftext|> y║<|StartOfText|>║<|ENDOFTEXT|> z
<|startoftext|><|endoftext|><|endoftext|>║<|startoftext║<|endoftext|>>║!<|endoftext|>!║< |endoftext|>
café║cafe\u0301║CAFÉ║naïve façade║Ångström║A\u030angstro\u0308m║Ελληνικά ΣΊΣΥΦΟΣ║ΣΑΣ ΌΔΟΣ║İstanbul║ISTANBUL ıi
straße STRASSE ẞ║ǅ ǆ Ǆ ǈ║ﬁ ﬂ ﬀ║Ａｂｃ１２３ ＡＢＣ！║ｶﾞ ガ カ\u3099║Œuvre œ Æ æ Þ ð║Łódź Žižek Čapek║Ñandú ñ n\u0303
Привет, МИР! Ёжик║Україна її ґ║Здравей ЪЬ║Ӂ Ӝ Ѐ║Հայերեն ԵՒ և║ქართული ᲥᲐᲠᲗᲣᲚᲘ║עברית שָׁלוֹם║العربية مُحَمَّد ١٢٣║فارسی می‌خواهم ۱۲۳
हिन्दी नमस्ते १२३║বাংলা ৪৫║தமிழ் தமிழ்║ภาษาไทย ก็ ๑๒║ລາວ║မြန်မာ║ខ្មែរ║བོད་ཡིག║ኢትዮጵያ ፩፪║ᏣᎳᎩ ꮳꮃꭹ║ᐃᓄᒃᑎᑐᑦ
日本語の絵、富士山と桜。║中文：一只红色的苹果║繁體中文「圖畫」║한국어 그림 고양이║한\u1100\u1161\u11a8글║カタカナ ﾊﾝｶｸ║〆切 々 〇 ㊗ ㍿║𠮷野家 𩸽║㈱ ㋿ ㎏
🍎║👩‍👩‍👧‍👦 family║❤️ vs ❤║🏳️‍🌈🏴‍☠️║👍🏽👍🏿║🇫🇷🇯🇵 flags║1️⃣2️⃣║😀😃a😄b║☃ ☂ ★ ♥ ✓║→ ← ⇒ ∞ ≠ ≤║∑ ∫ √ π ∂
½ ¼ ⅓ ⅞║Ⅷ ⅷ ↂ║² ³ ⁴ ₂║① ⑳ ⓪║㉈ ㊿║٠١٢ ۰۱۲ ०१२║12345║1,234.56║3.14e-10║0x1F║v1.5║1st 2nd 3rd║x²+y²
\u00a0a\u00a0b║a\u2003b\u2009c║a\u3000b║a\u200bb║a\u200db║a\ufeffb║a\u1680b\u205fc║a\u0085b║a\u2028b\u2029c║a\u180eb║\u00ad soft\u00adhyphen
a\u0000b║a\u0001\u001f\u007fb║\u001c\u001d║a\u000bb\u000cc║\ue000 \uf8ff║\U000e0041\U000e007f║\ufffd║\ufffe║\U0010ffff║\u0378 \u0e5c║\U0001fae8
a\u0323\u0301║a\u0301\u0323║\u0345\u0301a║e\u0327\u0301║\u1e9b\u0323║q\u0307\u0323║Z\u0351\u036b\u0343a\u030d║o\u0302\u0301 ộ o\u0323\u0302║\u0958 \u0915\u093c║\u2126 Ω Å K
\u1ac1\u0301a\u1ac0║\u0d3b\u0301║\U00011938 \U00011935\U00011930║\U0001e130\U0001e2ae║\ua7cb \ua7dc \ua7ce║\U00010d50 \U00016ea0║\u1c89║\U0001ccf0\U00010d40║\U00013460║\U0002ebf0
x\u1c89y║x\ua7cby z\ua7dcz║x\U00013460y║\u4e00\U0002ebf0\u4e8c║!\U00016100!║x\U00010d40y║!\U0001e5f1!
<|ENDOFTEXT|>>!║!<|EndOfText|>!║<|STARTOFTEXT|>'s║<|StartOfText|><|EndOfText|>
snake_case_name║kebab-case-name║CamelCase║a/b\\c║(a:1.2) [b] {{c}}║<lora:x:0.8>║<cat-toy> a║$5 €6 £7 ¥8║50% off & more║~`^|@#$%^&*()_+-=
""".replace("\n", "║").split("║")


def random_prompts():
    source = random.Random(7)
    known = [
        c
        for c in range(0x20, 0x20000)
        if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") and not 0x3400 <= c < 0xD7A4
    ]
    marks = [c for c in known if unicodedata.category(chr(c))[0] == "M"]
    spaces = [0x9, 0xA, 0x20, 0x85, 0xA0, 0x2002, 0x2028, 0x3000, 0x200B]

    def word():
        kind = source.random()
        letters = "".join(chr(source.choice(known)) for _ in range(source.randint(1, 5)))
        if kind < 0.3:
            return letters
        if kind < 0.5:
            return "".join(c + chr(source.choice(marks)) for c in letters)
        if kind < 0.6:
            return unicodedata.normalize("NFD", letters)
        return "".join(chr(source.randint(33, 126)) for _ in range(source.randint(1, 7)))

    return ["".join(word() + chr(source.choice(spaces)) for _ in range(source.randint(1, 6))) for _ in range(60)]


def prompts():
    long = "a very long prompt about a small village by the sea where nothing ever happens, "
    texts = [""] + WRITTEN + [style.format(noun) for style in STYLES for noun in NOUNS]
    texts += [long * 2, long * 9, "supercalifragilisticexpialidocious" * 12, "é" * 90, "🍎" * 40]
    texts += ["1 " * 80, "a " * 75, "a " * 74 + "b", "a " * 76, "!" * 77, "ab" * 500, " " * 100]
    return texts + random_prompts()


def train_bpe(merges, corpus):
    """A byte-level vocabulary of its own: all bytes, all bytes with </w>, then the merges."""
    trainer = trainers.BpeTrainer(
        vocab_size=512 + merges,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.train_from_iterator(corpus, trainer)
    trained = json.loads(tokenizer.to_str())["model"]["merges"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = alphabet + [c + "</w>" for c in alphabet]
    # A trained pair may need a symbol that only occurred at the end of a word.
    names += ["".join(pair) for pair in trained]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}, trained


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=0) + "\n")


def added(content, normalized):
    return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)


def make_bang():
    """As transformers 5 saves: tokenizer.json alone. Pads with "!", as SD 2.x does."""
    folder = DATA / "tokenizer_bang"
    vocab, merges = train_bpe(120, [p.lower() for p in prompts()[:150]])
    vocab[BEGIN], vocab[END] = len(vocab), len(vocab) + 1
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in merges], pad_token="!", model_max_length=20)
    tokenizer.save_pretrained(folder)


def make_dicts():
    """As the SD 1.5 folders of 2022: special tokens as objects, an added token, no maximum."""
    folder = DATA / "tokenizer_dicts"
    folder.mkdir()
    vocab, merges = train_bpe(60, [p.lower() for p in reversed(prompts()[:220])])
    vocab[BEGIN], vocab[END] = len(vocab), len(vocab) + 1
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": added(BEGIN, True), "eos_token": added(END, True)}
    special.update(unk_token=added(END, True), pad_token=END)
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "added_tokens.json", {"<Cat-Toy>": len(vocab)})
    config = {k: dict(v, __type="AddedToken") for k, v in special.items() if isinstance(v, dict)}
    config.update(add_prefix_space=False, do_lower_case=True, errors="replace", pad_token=END)
    write_json(folder / "tokenizer_config.json", config)


def make_ids():
    texts = prompts()
    out = {"prompts": texts, "tokenizers": {}}
    for name in ("tokenizer_demo", "tokenizer_bang", "tokenizer_dicts"):
        tokenizer = CLIPTokenizer.from_pretrained(DATA / name)
        length = min(tokenizer.model_max_length, 77)
        padded = tokenizer(texts, padding="max_length", truncation=True, max_length=length)
        out["tokenizers"][name] = {
            "length": length,
            "size": len(tokenizer),
            "ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
            "padded": padded["input_ids"],
        }
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "tokenizer_demo")
    tokens = ["<Sks-Toy>", "sks", "é", "red apple", "<a>", "<a><b>", "a</w>"]
    before = len(tokenizer)
    tokenizer.add_tokens(tokens)
    texts = ["a <sks-toy>", "A <SKS-TOY>_1<Sks-Toy>", "xsksx SKS", "cafe\u0301 CAFÉ é", "red  apple"]
    texts += ["RED\u00a0APPLE pie", "<a><b>", "<A> <b><a>", "a</w> A</W>", "<|endoftext|>sks"]
    out["added"] = {
        "tokens": tokens,
        "ids_of_tokens": tokenizer.convert_tokens_to_ids(tokens),
        "size": [before, len(tokenizer)],
        "prompts": texts,
        "ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
    }
    path = DATA / "tokenizer_ids.json"
    path.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(path, len(out["prompts"]), "prompts,", path.stat().st_size, "bytes")


ENCODERS = {
    # As SD 1.x; the end token's id tells the pooled state. Names as transformers < 5.6 saves them.
    "clip_sd1": dict(
        config=dict(
            vocab_size=90,
            hidden_size=32,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=12,
            hidden_act="quick_gelu",
            eos_token_id=89,
            bos_token_id=88,
            pad_token_id=89,
        ),
        prefix="text_model.",
    ),
    # As SD 2.x, but for the sizes; end token 2 stands for the largest id. Names without the prefix,
    # and the buffer of positions that old files hold.
    "clip_sd2": dict(
        config=dict(
            vocab_size=70,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=16,
            hidden_act="gelu",
            layer_norm_eps=1e-3,
            eos_token_id=2,
            bos_token_id=0,
            pad_token_id=1,
        ),
        prefix="",
    ),
}


def make_encoder(name, config, prefix, seed):
    folder = DATA / name
    folder.mkdir()
    torch.manual_seed(seed)
    settings = CLIPTextConfig(**config)
    model = CLIPTextModel(settings).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            # Larger than the usual start, so that activations and attention are far from linear.
            width = 0.5 / value.shape[-1] ** 0.5 if value.dim() > 1 else 0.3
            value.normal_(1.0 if "norm" in key and key.endswith("weight") else 0.0, 2 * width)
            value.copy_(value.half())
    weights = {prefix + k: v.half().contiguous() for k, v in model.state_dict().items() if "position_ids" not in k}
    if not prefix:
        weights["embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = settings.to_json_string()
    (folder / "config.json").write_text(text)
    model = model.double()
    length = config["max_position_embeddings"]
    end = config["vocab_size"] - 1
    ids = torch.randint(3, end, (3, length))
    ids[0, 5:] = end
    ids[1, length - 1] = end
    ids[2, 7:] = 1
    ids[2, 6] = end
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        numbers = {"ids": ids, "last_hidden_state": out.last_hidden_state, "pooled": out.pooler_output}
        for skip in range(1, config["num_hidden_layers"] + 1):
            hidden = out.hidden_states[-(skip + 1)]
            numbers[f"clip_skip_{skip}"] = model.final_layer_norm(hidden)
        numbers["short"] = model(ids[:1, :4]).last_hidden_state
    save_file({k: v.contiguous() for k, v in numbers.items()}, folder / "numbers.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    print(folder, sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def main():
    for name in ("tokenizer_bang", "tokenizer_dicts", *ENCODERS):
        shutil.rmtree(DATA / name, ignore_errors=True)
    make_bang()
    make_dicts()
    make_ids()
    for seed, (name, settings) in enumerate(ENCODERS.items()):
        make_encoder(name, seed=seed, **settings)


if __name__ == "__main__":
    main()
