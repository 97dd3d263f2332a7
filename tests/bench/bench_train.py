#!/usr/bin/env python3
"""bench_train.py BUILD - how fast a training step is, beside the machine's own peak.

A Llama of 15 M parameters (hidden 288, 6 layers, vocabulary 32,000), random
weights, float32, LoRA r = 8 on all linears, DPO on pairs of about 128 + 64 + 64
tokens. Where a Python with torch, transformers and peft is found ($BENCH_PYTHON,
else python3), a PyTorch + PEFT loop does the same job in the same run,
interleaved; the numbers must be equal first, or there is no ratio."""
import array
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracle"))
import corpus  # noqa: E402

BUILD = Path(sys.argv[1]).resolve()
WORKER = BUILD / "worker" / "align-worker"
THREADS = len(os.sched_getaffinity(0))
D, LAYERS, HEADS, F, V = 288, 6, 6, 768, 32000
PAIRS, STEPS, ROUNDS, LR = 8, 6, 3, 1e-3


def make_model(out):
    out.mkdir()
    rng = random.Random(1)
    pool = array.array("f", (rng.gauss(0.0, 0.02) for _ in range(1 << 18)))

    def weights(n):
        start = rng.randrange(len(pool))
        a = array.array("f")
        while len(a) < n:
            a.extend(pool[start:])
            a.extend(pool[:start])
        return a[:n].tobytes()

    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        shapes |= {p + f"self_attn.{x}_proj.weight": (D, D) for x in "qkvo"}
        shapes |= {p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D),
                   p + "mlp.down_proj.weight": (D, F), p + "input_layernorm.weight": (D,),
                   p + "post_attention_layernorm.weight": (D,)}
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(shapes):
        shape = shapes[name]
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        blob = array.array("f", [1.0] * n).tobytes() if len(shape) == 1 else weights(n)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * n]}
        blobs.append(blob)
        at += 4 * n
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D,
              "intermediate_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": HEADS, "vocab_size": V, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "max_position_embeddings": 1024, "hidden_act": "silu",
              "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
              "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HERE.parent / "data" / "demo" / name, out)


def make_rows(path):
    rng = random.Random(2)
    rows = []
    for _ in range(PAIRS):
        asks = [corpus.Talk(rng) for _ in range(5)]
        prompt = " ".join(t.question + " " + t.reply(True) for t in asks)
        rows.append({"prompt": prompt,
                     "chosen": " " + " ".join(asks[i].reply(True) for i in range(3)),
                     "rejected": " " + " ".join(asks[i].reply(False) for i in range(3))})
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def job(folder, out, steps, lr):
    spec = {"name": "bench", "method": "dpo", "model_name_or_path": str(folder / "model"),
            "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target_modules": "all-linear",
            "train": [{"path": str(folder / "rows.jsonl"), "format": "preference",
                       "template": "none"}],
            "beta": 0.1, "learning_rate": lr, "lr_scheduler_type": "constant", "max_steps": steps,
            "train_batch_size": PAIRS, "max_length": 1024, "seed": 1, "logging_steps": 1,
            "save_steps": 1000000, "devices": 1, "device_type": "cpu", "weight_decay": 0.0,
            "threads_per_device": THREADS, "max_grad_norm": 1.0, "output_dir": str(out)}
    path = folder / "job.json"
    path.write_text(json.dumps(spec))
    run = subprocess.run([WORKER, "run", path], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"align-worker failed:\n{run.stdout}{run.stderr}")
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [x for x in lines if "loss" in x]


def token_rows(folder):
    run = subprocess.run([WORKER, "data", folder / "job.json", "--show", str(PAIRS), "--set",
                          f"output_dir={folder / 'none'}"], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"align-worker data failed:\n{run.stderr}")
    return json.loads(run.stdout)


def ids_of(view):
    return [{part["name"]: [t["id"] for t in part["tokens"]] for part in row["parts"]}
            for row in view["examples_shown"]]


def flops_per_pair(rows):
    """Forward and input gradients of the frozen base on the tokens a pair really
    needs (prompt once), head on reply rows, attention, adapters; no reference."""
    total = 0.0
    layer = 4 * D * D + 3 * D * F
    for r in rows:
        p, c, j = len(r["prompt"]), len(r["chosen"]), len(r["rejected"])
        tokens = p + c + j
        total += 4 * tokens * LAYERS * layer
        total += 6 * tokens * LAYERS * 8 * (4 * 2 * D + 3 * (D + F))
        total += 4 * (c + j) * D * V
        seen = p * p / 2 + (c + j) * p + c * c / 2 + j * j / 2
        total += 3.5 * 4 * seen * D * LAYERS
    return total / len(rows)


def find_torch():
    for python in filter(None, (os.environ.get("BENCH_PYTHON"), "python3")):
        probe = subprocess.run([python, "-c", "import torch, peft, transformers"],
                               capture_output=True)
        if probe.returncode == 0:
            return python
    return None


def close(a, b, tol):
    return all(abs(x - y) <= tol * max(abs(y), 1e-3) for x, y in zip(a, b))


def main():
    folder = Path(tempfile.mkdtemp(prefix="alignd-bench-"))
    try:
        make_model(folder / "model")
        make_rows(folder / "rows.jsonl")
        job(folder, folder / "start", 1, 0.0)  # leaves the untouched adapter
        rows = ids_of(token_rows(folder))
        peak = float(subprocess.run([BUILD / "tests" / "bench" / "peak", str(THREADS)],
                                    capture_output=True, text=True, check=True).stdout)
        flops = flops_per_pair(rows)
        tokens = statistics.mean(len(r["prompt"]) + len(r["chosen"]) + len(r["rejected"])
                                 for r in rows)
        python = find_torch()
        case = folder / "case.json"
        case.write_text(json.dumps({"model": str(folder / "model"), "adapter": str(folder / "start"),
                                    "rows": rows, "steps": STEPS, "threads": THREADS, "lr": LR,
                                    "beta": 0.1, "clip": 1.0}))
        ours, theirs, cached = [], [], []
        for round_ in range(ROUNDS):
            log = job(folder, folder / f"run{round_}", STEPS, LR)
            # step 1 computes the reference; it is part of the job, not of a steady step
            ours += [x["step_seconds"] for x in log[2:]]
            if not python:
                continue
            run = subprocess.run([python, HERE / "torch_dpo.py", case], capture_output=True,
                                 text=True)
            if run.returncode:
                sys.exit(f"the PyTorch loop failed:\n{run.stderr[-2000:]}")
            torch = json.loads(run.stdout.splitlines()[-1])
            for key in ("loss", "grad_norm"):
                a, b = [x[key] for x in log], torch["default"][key]
                if not close(a, b, 2e-3):
                    sys.exit(f"not equal, so no ratio: {key} of alignd {a}, of PyTorch {b}")
            theirs += torch["default"]["seconds"][2:]
            cached += torch["cached"]["seconds"][2:]
        rate = PAIRS / statistics.median(ours)
        print(f"15 M parameters, float32, {THREADS} threads, {PAIRS} pairs a step, "
              f"{tokens:.0f} tokens a pair (prompt once)")
        print(f"  alignd                         {rate:8.2f} pairs/s {rate * tokens:8.0f} tokens/s "
              f"{rate * flops / 1e9:7.1f} GFLOP/s = {100 * rate * flops / 1e9 / peak:.0f} % of the "
              f"measured peak {peak:.0f}")
        if not python:
            print("  PyTorch + PEFT                 not measured: no Python with torch, peft and "
                  "transformers (BENCH_PYTHON)")
            return
        for name, seconds in (("PyTorch + PEFT", theirs), ("  same, reference cached", cached)):
            other = PAIRS / statistics.median(seconds)
            print(f"  {name:<30} {other:8.2f} pairs/s {other * tokens:8.0f} tokens/s   "
                  f"alignd / it = {rate / other:.2f}")
        print(f"  torch {torch['version']}; losses and gradient norms of {STEPS} steps equal within "
              "2e-3; medians of interleaved runs")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


main()
