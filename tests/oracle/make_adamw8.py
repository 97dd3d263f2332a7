#!/usr/bin/env python3
"""make_adamw8.py DATA - AdamW with moments in 8 bits as bitsandbytes has it, on a CPU.

Writes DATA/fixtures/adamw8.json: both dynamic maps, and what is there after some of six steps of
bitsandbytes.optim.AdamW8bit over a tensor of 5000 elements (moments in 8 bits) and one of 300
(float32), the gradient clipped by torch before each. Parameters and gradients are made from a
counter, as tests/kernels/kit.c makes them, and not stored. Two runs:
  cpu      as it is: its CPU backend quantises with a table of 65536 equal steps of [-1, 1]
  default  the same with the quantiser of its backend "default": the nearest entry"""
import json
import sys
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.backends.cpu import ops as cpu_ops
from bitsandbytes.functional import create_dynamic_map

SIZES, SEED, STEPS = [5000, 300], 41, 6
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.05, "max_grad_norm": 1.0}
RATES = [1e-3, 2e-3, 2e-3, 1.5e-3, 1e-3, 5e-4]
MASK = (1 << 64) - 1


def kit_value(seed, row, col):
    x = (seed * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03 + col) & MASK
    for _ in range(2):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        x ^= x >> 31
    return (x >> 41) / 4194304.0 - 1.0


def parameters():
    return np.array([kit_value(SEED, 0, i) for i in range(sum(SIZES))], np.float32)


def gradient(step):
    """Of sizes 1 to 2^-7; exact in float32."""
    at = range(sum(SIZES))
    return np.array([kit_value(SEED, 2 * step, i) * 2.0 ** -int(4 + 4 * kit_value(SEED, 2 * step + 1, i))
                     for i in at], np.float32)


def nearest(x, code, absmax_out, out, blocksize):
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    q, absmax = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk(key, x, code, blocksize)
    out.copy_(q)
    absmax_out.copy_(absmax)


def hexed(t):
    return t.detach().contiguous().numpy().tobytes().hex()


def run(name, kept):
    cut = np.split(parameters(), [SIZES[0]])
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in cut]
    optim = bitsandbytes.optim.AdamW8bit(params, betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"],
                                         weight_decay=ADAM["weight_decay"])
    out = {"quantizer": name, "grad_norm": [], "after": []}
    for step in range(1, STEPS + 1):
        for p, g in zip(params, np.split(gradient(step), [SIZES[0]])):
            p.grad = torch.from_numpy(g.copy())
        out["grad_norm"].append(torch.nn.utils.clip_grad_norm_(params, ADAM["max_grad_norm"]).item())
        optim.param_groups[0]["lr"] = RATES[step - 1]
        optim.step()
        if step in kept:
            eight, full = optim.state[params[0]], optim.state[params[1]]
            assert eight["state1"].dtype == torch.uint8 and full["state1"].dtype == torch.float32
            out["after"].append({
                "step": step, "p": hexed(params[0]) + hexed(params[1]),
                "m": hexed(eight["state1"]), "v": hexed(eight["state2"]),
                "m_scale": hexed(eight["absmax1"]), "v_scale": hexed(eight["absmax2"]),
                "m32": hexed(full["state1"]), "v32": hexed(full["state2"])})
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    fixture = {"bitsandbytes": bitsandbytes.__version__, "tensors": SIZES, "seed": SEED, **ADAM,
               "learning_rate": RATES, "signed": hexed(create_dynamic_map(signed=True)),
               "unsigned": hexed(create_dynamic_map(signed=False)), "runs": [run("cpu", (5, 6))]}
    cpu_ops._quant_blockwise_fp32_direct = nearest
    fixture["runs"].append(run("default", (6,)))
    text = json.dumps(fixture, separators=(",", ":")).replace(',"', ',\n"')
    path = Path(sys.argv[1]) / "fixtures" / "adamw8.json"
    path.write_text(text + "\n")
    print(path.name, len(text))
