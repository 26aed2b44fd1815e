# SPDX-License-Identifier: Apache-2.0
"""Makes the pictures and numbers that tests/programs/{image,png}_test.cpp compare with.

Made with Python 3.11, Pillow 13.0.0, numpy 2.4.6, safetensors 0.8.0:

    python tests/parity/make_images.py

writes tests/parity/data/images: small pictures in every format that is read, `expected.safetensors`
with what PIL's exif_transpose and convert("RGB") make of each (height, width, 3; uint8), and
`resized.safetensors` with PIL's results of resizing, keyed FILTER_WIDTHxHEIGHT. The pictures are
smooth waves with noise and a white mark in the upper left corner, so that a wrong orientation shows.
"""

import pathlib
import shutil
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent / "data" / "images"
WIDTH, HEIGHT = 31, 22
ORIENTATION = 274


def waves(width, height, channels, seed=0, bits=8):
    """(height, width, channels) in 0 .. 2^bits - 1."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    layers = [np.sin(x / (4.0 + c) + c) * np.cos(y / (5.0 - c / 2)) for c in range(channels)]
    values = np.stack(layers, -1) * 0.4 + 0.5 + generator.normal(0, 0.06, (height, width, channels))
    values[: height // 4, : width // 3, :3] = 1
    top = 2**bits - 1
    return np.round(values.clip(0, 1) * top).astype(np.uint16 if bits == 16 else np.uint8)


def chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def passes(interlaced):
    """(x start, y start, x step, y step) of the passes of a PNG."""
    if not interlaced:
        return [(0, 0, 1, 1)]
    return [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def write_png(name, values, colour_type, depth, extra=(), interlaced=False, trailing=()):
    """A PNG of a kind that PIL does not write; values (height, width, channels), unfiltered rows."""
    height, width, _ = values.shape
    data = b""
    for left, top, across, down in passes(interlaced):
        for row in values[top::down, left::across]:
            if row.size == 0:
                continue
            if depth == 16:
                packed = row.astype(">u2").tobytes()
            else:
                bits = np.unpackbits(row.reshape(-1, 1).astype(np.uint8), axis=1)[:, 8 - depth :]
                packed = np.packbits(bits.reshape(-1)).tobytes()
            data += b"\0" + packed
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data)), *trailing, (b"IEND", b"")]
    (FOLDER / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def exif(orientation, big_endian=False):
    block = Image.Exif()
    block.endian = ">" if big_endian else "<"
    block[ORIENTATION] = orientation
    block[271] = "a camera"
    return block.tobytes()


def make_jpegs(rgb):
    rgb.save(FOLDER / "colour.jpg", quality=90)
    rgb.save(FOLDER / "progressive.jpg", quality=80, progressive=True, subsampling="4:2:0")
    rgb.save(FOLDER / "full_colour.jpg", quality=70, subsampling="4:4:4")
    rgb.save(FOLDER / "really_rgb.jpg", quality=90, keep_rgb=True)
    rgb.convert("L").save(FOLDER / "grey.jpg", quality=90)
    Image.fromarray(waves(WIDTH, HEIGHT, 4, seed=1), "CMYK").save(FOLDER / "cmyk.jpg", quality=90)
    for orientation in range(1, 10):  # 9 is no orientation
        block = exif(orientation, big_endian=orientation % 2 == 0)
        rgb.save(FOLDER / f"orientation_{orientation}.jpg", quality=90, exif=block)


def make_pngs(rgb, alpha):
    rgb.save(FOLDER / "colour.png")
    rgb.save(FOLDER / "turned.png", exif=exif(6))
    alpha.save(FOLDER / "alpha.png")
    alpha.convert("LA").save(FOLDER / "grey_alpha.png")
    rgb.convert("L").save(FOLDER / "grey.png")
    rgb.convert("1").save(FOLDER / "black_and_white.png")
    palette = rgb.quantize(16)
    palette.save(FOLDER / "palette.png")
    palette.save(FOLDER / "palette_alpha.png", transparency=bytes(range(0, 256, 16)))
    write_png("grey_2_bits.png", waves(WIDTH, HEIGHT, 1, bits=2), 0, 2)
    write_png("grey_4_bits_interlaced.png", waves(WIDTH, HEIGHT, 1, bits=4), 0, 4, interlaced=True)
    write_png("interlaced.png", waves(WIDTH, HEIGHT, 3), 2, 8, interlaced=True)
    write_png("colour_16_bits.png", waves(WIDTH, HEIGHT, 3, bits=16), 2, 16)
    write_png("grey_16_bits.png", waves(WIDTH, HEIGHT, 1, bits=16), 0, 16)
    write_png("alpha_16_bits.png", waves(WIDTH, HEIGHT, 4, bits=16), 6, 16)
    write_png("grey_alpha_16_bits.png", waves(WIDTH, HEIGHT, 2, bits=16), 4, 16)
    # A colour that counts as transparent, a gamma to be ignored, and EXIF behind the picture.
    gamma = (b"gAMA", struct.pack(">I", 100000))
    key = (b"tRNS", struct.pack(">HHH", 255, 255, 255))
    turned = (b"eXIf", exif(8)[6:])
    write_png("colour_key.png", waves(WIDTH, HEIGHT, 3), 2, 8, extra=(gamma, key), trailing=(turned,))


def make_other_marks(rgb):
    """Orientations where PIL also looks: XMP, and ImageMagick's text of a PNG."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    rgb.save(FOLDER / "xmp.jpg", quality=90, xmp=xmp)
    rgb.save(FOLDER / "xmp.webp", lossless=True, xmp=xmp)
    values = np.asarray(rgb)
    itxt = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.replace(b'="6"', b">8<")
    write_png("xmp.png", values, 2, 8, extra=((b"iTXt", itxt),))
    block = exif(3)
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    write_png("raw_profile.png", values, 2, 8, extra=((b"tEXt", b"Raw profile type exif\0" + text),))


def make_others(rgb, alpha):
    rgb.save(FOLDER / "lossy.webp", quality=80, exif=exif(3))
    rgb.save(FOLDER / "lossless.webp", lossless=True)
    alpha.save(FOLDER / "alpha.webp", lossless=True, exact=True)
    rgb.save(FOLDER / "colour.bmp")
    rgb.convert("L").save(FOLDER / "grey.bmp")
    rgb.save(FOLDER / "colour.gif")
    palette = rgb.quantize(16)
    palette.save(FOLDER / "transparent.gif", transparency=palette.getpixel((WIDTH // 2, HEIGHT // 2)))
    rgb.save(FOLDER / "colour.tga")
    rgb.save(FOLDER / "packed.tga", rle=True)


def upright_rgb(path):
    if path.name == "grey_16_bits.png":  # PIL clips at 255; see load.h
        grey = np.asarray(Image.open(path)) >> 8
        return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
    return np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def make_texts(rgb):
    """A PNG with each kind of text chunk, as other programs write them."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a café\nSteps: 25, Seed: 7")
    info.add_text("Comment", "long " * 40, zip=True)
    info.add_itxt("Title", "猫 🐈")
    rgb.crop((0, 0, 8, 8)).save(FOLDER / "texts.png", pnginfo=info)


def make_resized():
    source = waves(61, 47, 3, seed=2)
    source[30:40, 30:50] = np.random.default_rng(3).integers(0, 2, (10, 20, 3)) * 255  # overshoots
    image = Image.fromarray(source)
    image.save(FOLDER / "resize_source.png")
    filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
    sizes = [(32, 32), (16, 12), (64, 48), (20, 90), (61, 13), (150, 47), (5, 4), (1, 1)]
    results = {
        f"{name}_{w}x{h}": np.array(image.resize((w, h), kind)) for name, kind in filters.items() for w, h in sizes
    }
    save_file(results, FOLDER / "resized.safetensors")


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    rgb = Image.fromarray(waves(WIDTH, HEIGHT, 3))
    alpha = Image.fromarray(waves(WIDTH, HEIGHT, 4))
    make_jpegs(rgb)
    make_pngs(rgb, alpha)
    make_others(rgb, alpha)
    make_other_marks(rgb)
    expected = {path.name: upright_rgb(path) for path in sorted(FOLDER.iterdir())}
    save_file(expected, FOLDER / "expected.safetensors")
    make_texts(rgb)
    make_resized()


if __name__ == "__main__":
    main()
