"""Yardsticks of `cargo xtask bench ot`: SwAV's Sinkhorn routine in PyTorch, and POT. One JSON line a case."""
import json
import statistics
import sys
import time

import numpy as np
import ot
import torch
import torch.nn.functional as F

repeats = int(sys.argv[1])
torch.manual_seed(0)


def median_ms(function, n):
    function()
    times = []
    begin = time.perf_counter()
    while len(times) < n or time.perf_counter() - begin < 0.5:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@torch.no_grad()
def codes(scores, epsilon=0.05, n_iters=3):
    q = torch.exp(scores / epsilon).t()
    n_prototypes, n_samples = q.shape
    q /= q.sum()
    for _ in range(n_iters):
        q /= q.sum(dim=1, keepdim=True)
        q /= n_prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= n_samples
    return (q * n_samples).t()


def unit(n):
    return F.normalize(torch.randn(n, 128), dim=1)


for batch in (64, 256, 4096):
    scores = unit(batch) @ unit(3000).t()
    print(json.dumps({"case": "swav", "batch": batch, "torch_ms": median_ms(lambda: codes(scores), repeats)}), flush=True)

rng = np.random.default_rng(0)
for n, reg in ((1000, 0.05), (1000, 0.01), (5000, 0.05)):
    cost = ot.dist(rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) + 0.3)
    cost /= cost.max()
    weights = np.ones(n) / n
    line = {"case": "general", "n": n, "epsilon": reg}
    for method in ("sinkhorn", "sinkhorn_log"):
        if method == "sinkhorn_log" and n > 2000:
            continue

        def solve():
            return ot.sinkhorn(weights, weights, cost, reg, method=method, numItermax=5000, stopThr=1e-6, log=True)

        line[method + "_ms"] = median_ms(solve, min(repeats, 5))
        plan, log = solve()
        # POT numbers its iterations from 0.
        line[method + "_iters"] = int(log["niter"]) + 1
        line[method + "_residual"] = float(max(np.linalg.norm(plan.sum(axis) - weights) for axis in (0, 1)))
    print(json.dumps(line), flush=True)
