"""Yardsticks of `cargo xtask bench ot`: SwAV's Sinkhorn routine in PyTorch, and POT.

Reads cases from standard input, a line of JSON each (`case` is "swav" or POT's method), runs each for a while and answers
with a line of JSON.
"""
import json
import statistics
import sys
import time

import numpy as np
import ot
import torch
import torch.nn.functional as F

torch.manual_seed(0)


def median_ms(function):
    function()
    times = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < 0.3:
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


def answer(case):
    if case["case"] == "swav":
        scores = unit(case["batch"]) @ unit(case["prototypes"]).t()
        return {"ms": median_ms(lambda: codes(scores))}
    cost = ot.dist(np.array(case["x"]), np.array(case["y"]))
    cost /= cost.max()
    n = len(cost)
    weights = np.ones(n) / n

    def solve():
        return ot.sinkhorn(
            weights, weights, cost, case["epsilon"], method=case["case"], numItermax=5000, stopThr=1e-6, log=True
        )

    ms = median_ms(solve)
    plan, log = solve()
    # POT numbers its iterations from 0.
    residual = max(np.linalg.norm(plan.sum(axis) - weights) for axis in (0, 1))
    return {"ms": ms, "iters": int(log["niter"]) + 1, "residual": float(residual)}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
