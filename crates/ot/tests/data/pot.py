"""Writes pot.json: small problems with the answers of POT, an implementation independent of this crate.

    pip install pot numpy && python pot.py > pot.json

Plans are those of ot.sinkhorn with method "sinkhorn_log", run to a residual of 1e-12; optima are those of ot.emd2, a
network simplex.
"""

import json

import numpy as np
import ot

rng = np.random.default_rng(7)
cases = []
for k in range(24):
    n, m = (int(v) for v in rng.integers(2, 9, 2))
    cost = rng.uniform(0, 1, (n, m))
    if k % 3 == 1:
        cost = np.floor(cost * 4)
    scale = 10.0 ** rng.uniform(-6, 6)
    cost *= scale
    a, b = rng.uniform(0.05, 1, n), rng.uniform(0.05, 1, m)
    if k % 4 == 2:
        a[0], b[-1] = 1e-12, 1e-12
    a, b = a / a.sum(), b / b.sum()
    epsilon = scale * 10.0 ** rng.uniform(-2, 2)
    plan, log = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=1_000_000, stopThr=1e-12, log=True)
    assert log["err"][-1] <= 1e-12, (k, log["err"][-1])
    cases.append({
        "cost": cost.tolist(), "a": a.tolist(), "b": b.tolist(), "epsilon": epsilon,
        "plan": plan.tolist(), "optimum": float(ot.emd2(a, b, cost)),
    })
print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
