#!/usr/bin/env python3
"""Makes statistics.json: what torchvision and Pillow do to the two photographs beside this file.

Needs torch, torchvision and Pillow. Run it in this folder; it takes about six minutes on one core.

recipe: the SwAV recipe, written down anew with torchvision's own transforms, applied `n_crops` times to each photograph.
Over all pixels of all crops, channel by channel, of values from 0 to 1: mean, variance, histogram in `n_bins` bins; and
the standard errors of mean and variance, since crops are few beside what they can differ in.
chains: single crops with the parameters of each step; each channel's mean and mean square, of values from 0 to 255.
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
from torchvision.transforms import functional as F

PHOTOS = ["astronaut.png", "chelsea.png"]
GROUPS = [dict(size=64, min_scale=0.14, max_scale=1.0), dict(size=32, min_scale=0.05, max_scale=0.14)]
N_CROPS, N_BINS, N_CHAINS = 150_000, 32, 100


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
    values = np.arange(256) / 255
    powers = np.stack([values, values**2], 1)
    counts = np.zeros((3, 256), np.int64)
    moments = np.zeros((len(PHOTOS), N_CROPS, 3, 2))  # of each crop
    for number, name in enumerate(PHOTOS):
        photo = Image.open(name).convert("RGB")
        for n in range(N_CROPS):
            crop = np.asarray(steps(photo))
            crop_counts = np.stack([np.bincount(crop[:, :, c].ravel(), minlength=256) for c in range(3)])
            moments[number, n] = crop_counts @ powers / crop.shape[0] ** 2
            counts += crop_counts
    share = counts / counts.sum(1, keepdims=True)
    mean, square = (share @ powers).T
    histogram = share.reshape(3, N_BINS, -1).sum(2)

    def standard_error(of_crops):
        return np.sqrt((of_crops.var(1) / N_CROPS).sum(0)) / len(PHOTOS)

    # To first order, a crop moves the variance by what it moves E[v^2] - 2 mean E[v].
    errors = dict(mean_error=standard_error(moments[..., 0]),
                  variance_error=standard_error(moments[..., 1] - 2 * mean * moments[..., 0]))
    result = dict(mean=mean, variance=square - mean**2, histogram=histogram, **errors)
    return dict(group, **{key: value.tolist() for key, value in result.items()})


def chain(name, group):
    photo = Image.open(name).convert("RGB")
    region = T.RandomResizedCrop.get_params(photo, (group["min_scale"], group["max_scale"]), (3 / 4, 4 / 3))
    image = F.resized_crop(photo, *region, [group["size"]] * 2)
    flip, grey, blurred = random.random() < 0.5, random.random() < 0.2, random.random() < 0.5
    if flip:
        image = F.hflip(image)
    order, *factors = T.ColorJitter.get_params((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2))
    adjust = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    jitter = [dict(step=adjust[i].__name__, factor=factors[i]) for i in order.tolist()]
    for i in order.tolist():
        image = adjust[i](image, factors[i])
    if grey:
        image = F.rgb_to_grayscale(image, 3)
    radius = random.uniform(0.1, 2.0) if blurred else 0
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(image).reshape(-1, 3).astype(np.float64)
    top, left, height, width = region
    return dict(photo=name, size=group["size"], top=top, left=left, width=width, height=height, flip=flip, jitter=jitter,
                grey=grey, radius=radius, mean=pixels.mean(0).round(4).tolist(),
                mean_square=(pixels**2).mean(0).round(2).tolist())


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
chains = [chain(name, group) for _ in range(N_CHAINS // 4) for name in PHOTOS for group in GROUPS]
made_by = dict(torch=torch.__version__, torchvision=torchvision.__version__, pillow=PIL.__version__)
result = dict(made_by=made_by, photos=PHOTOS, n_crops=N_CROPS, n_bins=N_BINS, exact=exact, chains=chains,
              recipe=[recipe_statistics(group) for group in GROUPS])
with open("statistics.json", "w") as file:
    # A line for each entry of a list.
    lists = {key: value for key, value in result.items() if key in ("exact", "chains", "recipe")}
    for key, entries in lists.items():
        result[key] = [f"@{key} {i}" for i in range(len(entries))]
    text = json.dumps(result, indent=1)
    for key, entries in lists.items():
        for i, entry in enumerate(entries):
            text = text.replace(f'"@{key} {i}"', json.dumps(entry))
    file.write(text + "\n")
