"""Runs a ResNet of torchvision by PyTorch or onnxruntime, as often as it is told to on standard input."""

import sys
import time


def main(runner, arch, batch, size, threads, path):
    batch, size, threads = int(batch), int(size), int(threads)
    if runner == "export":
        return export(arch, batch, size, path)
    run = {"torch": torch_runner, "onnxruntime": onnxruntime_runner}[runner](arch, batch, size, threads, path)
    run()
    run()
    print("ready", flush=True)
    for line in sys.stdin:
        passes = int(line)
        begin = time.perf_counter()
        for _ in range(passes):
            run()
        print((time.perf_counter() - begin) / passes, flush=True)
    print(peak_rss_mib(), flush=True)


def model(arch):
    import torch
    import torchvision

    network = getattr(torchvision.models, arch)(weights=None).eval()
    network.fc = torch.nn.Identity()
    return network


def torch_runner(arch, batch, size, threads, _):
    import torch

    torch.set_num_threads(threads)
    network = model(arch).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            network(images)

    return run


def export(arch, batch, size, path):
    import torch

    images = torch.randn(batch, 3, size, size)
    torch.onnx.export(model(arch), (images,), path, input_names=["images"], opset_version=17, dynamo=False)


def onnxruntime_runner(arch, batch, size, threads, path):
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = numpy.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=numpy.float32)
    return lambda: session.run(None, {"images": images})


def peak_rss_mib():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float("nan")


main(*sys.argv[1:])
