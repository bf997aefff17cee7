#!/usr/bin/env python3
"""Writes steps_multicrop, steps_zero_residual and steps_with_queue beside itself: short SwAV trainings in PyTorch, for the tests of swav-encoder.

Needs torch, torchvision, numpy and safetensors:  python3 make_steps.py [SEED]
Layout (and that of other such files): init.*, per step crops in NCHW, z, scores, codes q0 and q1; gradients of the first and the
last step; after.*, the state at the end; eval.z_of_step0_crop0 in inference mode then. The JSON beside has the numbers.
"""
import json, os, sys
import torch, torch.nn as nn, torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models.resnet import Bottleneck

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH, HIDDEN, DIM, K, BATCH = 4, 12, 8, 10, 6


class Net(nn.Module):
    def __init__(s, zero_residual):
        super().__init__()
        s.conv1, s.bn1, s.maxpool, c = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH), nn.MaxPool2d(3, 2, 1), WIDTH
        for stage in range(4):
            planes, stride = WIDTH * 2 ** stage, 2 if stage else 1
            shortcut = nn.Sequential(nn.Conv2d(c, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
            setattr(s, f"layer{stage + 1}", nn.Sequential(Bottleneck(c, planes, stride, shortcut))); c = 4 * planes
        s.projection_head = nn.Sequential(nn.Linear(c, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
        s.prototypes = nn.Linear(DIM, K, bias=False)
        for m in s.modules():
            if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(m, Bottleneck) and zero_residual: nn.init.zeros_(m.bn3.weight)

    def forward(s, groups):
        def backbone(x):
            x = s.maxpool(F.relu(s.bn1(s.conv1(x))))
            for stage in range(4): x = getattr(s, f"layer{stage + 1}")(x)
            return x.mean((2, 3))
        return F.normalize(s.projection_head(torch.cat([backbone(g) for g in groups])), dim=1)


def codes(scores, epsilon):
    q = torch.exp(scores / epsilon).t(); q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]; q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).t()


def larc(params, velocity, lr, wd, momentum, trust):
    for name, p in params:
        if p.grad is None: continue
        g, pn, gn = p.grad, p.norm(), p.grad.norm()
        if pn != 0 and gn != 0: g = (g + wd * p) * (trust * pn / (gn + wd * pn + 1e-8))
        velocity[name] = g.clone() if name not in velocity else momentum * velocity[name] + g
        p.sub_(lr * velocity[name])


def make(name, sizes, lrs, freeze, wd, zero_residual, queue_length=0):
    net, out, facts, velocity = Net(zero_residual), {}, [], {}
    queue, queued = torch.zeros(2, queue_length, DIM), 0
    net.train(); keep = lambda prefix, items: out.update({prefix + k: v.detach().clone().contiguous() for k, v in items if "num_batches" not in k})
    keep("init.", net.state_dict().items())
    for i, lr in enumerate(lrs):
        crops = [torch.randn(BATCH, 3, s, s) for s in sizes]
        keep(f"step{i}.", [(f"crop{c}", x) for c, x in enumerate(crops)])
        with torch.no_grad(): net.prototypes.weight.copy_(F.normalize(net.prototypes.weight, dim=1))
        z = net([torch.cat([x for x, t in zip(crops, sizes) if t == s]) for s in dict.fromkeys(sizes)]); scores = net.prototypes(z); loss = 0
        for a in range(2):
            with torch.no_grad():
                all_scores = scores[BATCH * a:BATCH * (a + 1)]
                queue_used = 0 < queue_length <= queued
                if queue_used: all_scores = torch.cat((net.prototypes(queue[a]), all_scores))
                q = codes(all_scores, .05)[-BATCH:]
                if queue_length: queue[a] = torch.cat((z[BATCH * a:BATCH * (a + 1)], queue[a]))[:queue_length]
            keep(f"step{i}.", [(f"q{a}", q)])
            for v in set(range(len(sizes))) - {a}:
                loss = loss - (q * F.log_softmax(scores[BATCH * v:BATCH * (v + 1)] / .1, 1)).sum(1).mean() / (len(sizes) - 1) / 2
        queued += BATCH
        net.zero_grad(); loss.backward(); keep(f"step{i}.", [("z", z), ("scores", scores)])
        if i in (0, len(lrs) - 1): keep(f"step{i}.grad.", [(n, p.grad) for n, p in net.named_parameters()])
        if i < freeze: net.prototypes.weight.grad = None
        with torch.no_grad(): larc(net.named_parameters(), velocity, lr, wd, .9, .001)
        facts.append(dict(step=i, loss=loss.item(), lr=lr, queue_used=queue_used))
    keep("after.", net.state_dict().items()); net.eval()
    with torch.no_grad(): keep("eval.", [("z_of_step0_crop0", net([out["step0.crop0"]]))])
    save_file(out, os.path.join(HERE, name + ".safetensors"))
    json.dump(dict(steps=facts, prototypes=K, weight_decay=wd, momentum=.9, trust=.001, temperature=.1, epsilon=.05, iterations=3,
                   freeze_prototypes_iters=freeze, queue_length=queue_length, batch=BATCH, crops=len(sizes)), open(os.path.join(HERE, name + ".json"), "w"), indent=1)


torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 31)
torch.set_num_threads(1)
make("steps_multicrop", [48, 48, 24, 24, 24], [.5, .4, .3], 1, 1e-4, False)
make("steps_zero_residual", [32, 32], [.3] * 4, 0, 1e-6, True)
make("steps_with_queue", [32, 32], [.3] * 5, 0, 1e-6, False, 2 * BATCH)
