# SPDX-License-Identifier: Apache-2.0
"""Two measures of a 64x64 picture of one emoji on a plain background: the reference implementation.

examples/stable_diffusion/support/images/measures.cpp is a port of it, and make_measures.py makes the numbers to compare with.
"""

import torch
import torch.nn.functional as F

COLOURS = {
    "white": (245, 245, 245),
    "black": (25, 25, 28),
    "red": (200, 45, 45),
    "orange": (235, 140, 40),
    "yellow": (240, 215, 70),
    "green": (60, 150, 70),
    "blue": (50, 95, 190),
    "purple": (125, 65, 165),
    "pink": (240, 150, 185),
    "gray": (128, 130, 134),
    "brown": (120, 80, 50),
    "teal": (40, 150, 150),
}
NAMES = list(COLOURS)
VALUES = torch.tensor([COLOURS[name] for name in NAMES]).float() / 255


def background(image):
    """(3, H, W) in [0, 1] -> median of the 3-pixel border, and the name of the nearest colour."""
    sides = [image[:, :3], image[:, -3:], image[:, :, :3], image[:, :, -3:]]
    median = torch.cat([side.flatten(1) for side in sides], 1).median(1).values
    return median, NAMES[int((VALUES - median).square().sum(1).argmin())]


def crop_to(premultiplied, mask, n=24):
    """Square around the mask, resized to n x n: (4, H, W) -> unit vector of 4 n n values."""
    ys, xs = torch.where(mask)
    if len(ys) < 12:
        return torch.zeros(4 * n * n)

    def quantile(values, share):
        return float(torch.quantile(values.float(), share))

    y0, y1 = quantile(ys, 0.01), quantile(ys, 0.99) + 1
    x0, x1 = quantile(xs, 0.01), quantile(xs, 0.99) + 1
    centre_y, centre_x, side = (y0 + y1) / 2, (x0 + x1) / 2, max(y1 - y0, x1 - x0)
    height, width = mask.shape
    line = torch.linspace(-0.5 + 0.5 / n, 0.5 - 0.5 / n, n) * side
    grid_y = ((centre_y + line) / height * 2 - 1)[:, None].expand(n, n)
    grid_x = ((centre_x + line) / width * 2 - 1)[None].expand(n, n)
    smooth = F.avg_pool2d(premultiplied[None], 3, 1, 1)
    cropped = F.grid_sample(smooth, torch.stack([grid_x, grid_y], -1)[None], align_corners=False)[0]
    return F.normalize(cropped.flatten(), dim=0)


def subject_vector(image):
    """What differs from the background of a picture (3, H, W) in [0, 1], as a unit vector."""
    median, _ = background(image)
    mask = ((image - median[:, None, None]).abs().amax(0) > 0.14).float()
    return crop_to(torch.cat([image * mask, mask[None]]), mask > 0)


def reference_vector(premultiplied):
    """The same vector of an emoji's own bitmap (4, H, W), red, green and blue times alpha, and alpha."""
    small = F.interpolate(premultiplied[None], size=(64, 64), mode="bilinear", antialias=True)[0]
    return crop_to(small, small[3] > 0.5)
