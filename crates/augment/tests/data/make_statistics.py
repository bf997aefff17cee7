#!/usr/bin/env python3
"""Makes statistics.json: what torchvision and Pillow do to the two photographs beside this file.

Needs torch, torchvision and Pillow. Run it in this folder; it takes about two minutes on one core.

recipe: the SwAV recipe, written down anew with torchvision's own transforms, applied `n_crops` times to each photograph.
Over all pixels of all crops, channel by channel, of values from 0 to 1: mean, variance, histogram in `n_bins` bins.
exact: deterministic operations of Pillow, each channel's weighted sum of v * (i mod 997) over its pixels i.
"""
import json
import random

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as T

PHOTOS = ["astronaut.png", "chelsea.png"]
GROUPS = [dict(size=96, min_scale=0.14, max_scale=1.0), dict(size=48, min_scale=0.05, max_scale=0.14)]
N_CROPS, N_BINS = 20_000, 32


def blur(image):
    if random.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    return image


def recipe_statistics(group):
    steps = T.Compose([
        T.RandomResizedCrop(group["size"], (group["min_scale"], group["max_scale"])),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        T.RandomGrayscale(0.2),
        blur,
    ])
    counts = np.zeros((3, 256), np.int64)
    for name in PHOTOS:
        photo = Image.open(name).convert("RGB")
        for _ in range(N_CROPS):
            crop = np.asarray(steps(photo))
            for c in range(3):
                counts[c] += np.bincount(crop[:, :, c].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    values = np.arange(256) / 255
    mean = share @ values
    variance = share @ values**2 - mean**2
    histogram = share.reshape(3, N_BINS, -1).sum(2)
    return dict(group, mean=mean.tolist(), variance=variance.tolist(), histogram=histogram.tolist())


def weighted_sums(image):
    pixels = np.asarray(image).reshape(-1, 3).astype(np.int64)
    return ((np.arange(len(pixels)) % 997)[:, None] * pixels).sum(0).tolist()


random.seed(31)
torch.manual_seed(31)
exact = [
    dict(photo=name, operation=operation, weighted_sums=weighted_sums(function(Image.open(name).convert("RGB"))))
    for name in PHOTOS
    for operation, function in [("equalize", ImageOps.equalize), ("solarize", ImageOps.solarize)]
]
made_by = dict(torch=torch.__version__, torchvision=torchvision.__version__, pillow=PIL.__version__)
result = dict(made_by=made_by, photos=PHOTOS, n_crops=N_CROPS, n_bins=N_BINS, exact=exact,
              recipe=[recipe_statistics(group) for group in GROUPS])
with open("statistics.json", "w") as file:
    json.dump(result, file, indent=1)
    file.write("\n")
