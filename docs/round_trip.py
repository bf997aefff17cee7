#!/usr/bin/env python3
"""Weights from torchvision and timm into swav and back, and into onnxruntime: same features, same bits.

    python docs/round_trip.py [--swav target/release/swav] [--arch resnet50] [--tract in-tract]

tract is compared where its program is named, which `cargo build --release --manifest-path docs/in_tract/Cargo.toml` makes.

Needs torch, torchvision, timm, safetensors, onnxruntime, numpy and pillow. Weights are random, batch-norm statistics too.
Prints the largest difference of each way, as a share of the largest feature; fails above 1e-4.
"""

import argparse
import pathlib
import subprocess
import tempfile
import time

import numpy
import onnxruntime
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.228, 0.224, 0.225])
SIDE = 224
LIMIT = 1e-4


def randomise(model):
    """Gives batch norms statistics, scales and shifts as after a training."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked += 1234
    return model.eval()


def pictures(folder, n=6):
    """Smooth pictures; gives their bytes, in the order of their names."""
    folder.mkdir()
    generator = numpy.random.default_rng(31)
    arrays = []
    for index in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=numpy.uint8))
        picture = coarse.resize((SIDE, SIDE), Image.BICUBIC)
        picture.save(folder / f"{index}.png")
        arrays.append(numpy.asarray(picture))
    return numpy.stack(arrays)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swav", default="target/release/swav")
    parser.add_argument("--arch", default="resnet50", choices=["resnet18", "resnet34", "resnet50"])
    parser.add_argument("--tract", help="the program of docs/in_tract")
    options = parser.parse_args()
    torch.manual_seed(31)
    worst = 0.0

    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        images = pictures(place / "images")
        floats = torch.from_numpy(images).float() / 255
        floats = ((floats - MEAN) / STD).permute(0, 3, 1, 2).contiguous()

        def swav(*arguments):
            begin = time.time()
            command = [str(pathlib.Path(options.swav).resolve()), *map(str, arguments)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place)
            return time.time() - begin

        def compare(way, features, expected):
            nonlocal worst
            difference = float(numpy.abs(features - expected).max() / numpy.abs(expected).max())
            worst = max(worst, difference)
            print(f"  {way:<44} {difference:.1e}")

        def same_bits(way, state, run):
            back = load_file(run / "weights.safetensors")
            for name, tensor in state.items():
                if not name.startswith("fc."):
                    assert torch.equal(back[name].to(tensor.dtype), tensor), name
            print(f"  {way:<44} same bits")

        makers = {
            "torchvision": lambda: torchvision.models.get_model(options.arch, weights=None),
            "timm": lambda: timm.create_model(options.arch, pretrained=False),
        }
        for origin, make in makers.items():
            model = randomise(make())
            model.fc = torch.nn.Identity()
            with torch.inference_mode():
                expected = model(floats).numpy()
            state = model.state_dict()
            full = {**state, "fc.weight": torch.zeros(10, expected.shape[1]), "fc.bias": torch.zeros(10)}
            files = {
                "zip": place / f"{origin}-zip.pth",
                "legacy": place / f"{origin}-legacy.pth.tar",
                "safetensors": place / f"{origin}.safetensors",
                "bf16": place / f"{origin}-bf16.pth",
            }
            torch.save(full, files["zip"])
            nested = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in full.items()}}
            torch.save(nested, files["legacy"], _use_new_zipfile_serialization=False)
            save_file(full, files["safetensors"])
            halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in full.items()}
            torch.save(halves, files["bf16"])

            print(f"{options.arch} of {origin}, into swav")
            view = ["--resize", SIDE, "--size", SIDE]
            for kind, file in files.items():
                run = place / f"{origin}-{kind}"
                seconds = swav("import", file, "--out", run, *view)
                if kind == "bf16":
                    same_bits(f"import, {kind}, {seconds:.2f} s", {k: v for k, v in halves.items()}, run)
                    continue
                same_bits(f"import, {kind}, {seconds:.2f} s", state, run)
            run = place / f"{origin}-zip"
            swav("embed", "--run", run, "--data", place / "images", "--out", "features.npy", "--force")
            compare("features of swav", numpy.load(place / "features.npy"), expected)

            print(f"{options.arch} of {origin}, out of swav")
            for ending in ["safetensors", "pth"]:
                out = place / f"{origin}-out.{ending}"
                seconds = swav("export", "--run", run, "--out", out)
                print(f"  export, {ending:<36} {seconds:.2f} s")
                loaded = load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
                for name, maker in makers.items():
                    other = maker()
                    other.fc = torch.nn.Identity()
                    other.load_state_dict(loaded)
                    with torch.inference_mode():
                        compare(f"{ending} in {name}", other.eval()(floats).numpy(), expected)
                swav("import", out, "--out", place / f"{origin}-back-{ending}")
                same_bits(f"{ending} back in", state, place / f"{origin}-back-{ending}")
            for name, flags in {
                "onnx": [],
                "onnx, folded": ["--fold-batch-norm"],
                "onnx, bytes": ["--byte-images", "--fold-batch-norm"],
            }.items():
                out = place / f"{origin}-{len(flags)}.onnx"
                seconds = swav("export", "--run", run, "--out", out, *flags)
                session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
                given = images if "--byte-images" in flags else floats.numpy()
                (features,) = session.run(["features"], {"images": given})
                compare(f"{name} in onnxruntime ({seconds:.2f} s)", features, expected)
                for extents in [[], ["free"]] if options.tract else []:
                    given.tofile(place / "numbers")
                    shape = "x".join(map(str, given.shape))
                    program = str(pathlib.Path(options.tract).resolve())
                    command = [program, str(out), str(place / "numbers"), shape, str(place / "outputs"), *extents]
                    subprocess.run(command, check=True)
                    features = numpy.fromfile(place / "outputs", numpy.float32).reshape(expected.shape)
                    compare(f"{name} in tract, {'free' if extents else 'fixed'} shape", features, expected)
            # Another size and another number of images in the same file.
            larger = torch.nn.functional.interpolate(floats[:2], size=(288, 256))
            (features,) = onnxruntime.InferenceSession(place / f"{origin}-0.onnx").run(None, {"images": larger.numpy()})
            with torch.inference_mode():
                compare("onnx, two images of 288 x 256", features, model(larger).numpy())

    print(f"largest difference {worst:.1e}, allowed {LIMIT:.0e}")
    assert worst < LIMIT


if __name__ == "__main__":
    main()
