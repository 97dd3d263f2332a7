#!/usr/bin/env python3
"""check.py BUILD - trains the demo's QLoRA DPO job with alignd, then loads the adapter
with the real peft on the base as bitsandbytes quantises and dequantises it, in
float32, and compares the evaluation's log-probs, rewards and loss."""
import gzip
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import corpus

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "tests" / "data" / "demo"
WORKER = Path(sys.argv[1]).resolve() / "worker" / "align-worker"
BETA, TOLERANCE = 0.1, 1e-4


def train(folder):
    """The held-out rows are a file of their own, so that both sides read the same."""
    rows = [json.loads(x) for x in gzip.open(DEMO / "preference.jsonl.gz", "rt")]
    for name, part in (("train", rows[:640]), ("eval", rows[640:768])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    source = {"format": "hh-rlhf", "template": "vicuna"}
    job = {"name": "oracle", "method": "dpo", "model_name_or_path": str(DEMO),
           "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
           "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": "all-linear",
           "train": [{"path": str(folder / "train.jsonl"), **source}],
           "eval": [{"path": str(folder / "eval.jsonl"), **source}],
           "beta": BETA, "learning_rate": 1e-3, "max_steps": 20, "train_batch_size": 16,
           "max_length": 384, "devices": 2, "device_type": "cpu", "save_steps": 1000,
           "output_dir": str(folder / "run")}
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run([WORKER, "run", folder / "job.json"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    log = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return rows[640:768], [x for x in log if "eval_loss" in x][-1]


def dequantised_base():
    """float32, every linear of the layers through bitsandbytes' NF4 and back."""
    model = LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16,
                                             attn_implementation="eager")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            packed, state = bnb.quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4",
                                              compress_statistics=True)
            module.weight.data = bnb.dequantize_4bit(packed, state).reshape(module.weight.shape)
    return model.float().eval()


def sequences(rows):
    tok = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    for row in rows:
        for half in ("chosen", "rejected"):
            whole = corpus.vicuna(row[half], "</s>").replace("</s> USER:", "</s>USER:")
            prompt = whole[:whole.rindex(" ASSISTANT:") + len(" ASSISTANT:")]
            yield half, len(tok.encode(prompt).ids), tok.encode(whole).ids


def log_probs(model, rows):
    out = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for half, n_prompt, ids in sequences(rows):
            logits = model(torch.tensor([ids])).logits[0, :-1]
            lp = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            out[half].append(lp[n_prompt - 1:].double().sum().item())
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in out.items()}


def main():
    with tempfile.TemporaryDirectory(prefix="alignd-oracle-") as tmp:
        folder = Path(tmp)
        rows, ours = train(folder)
        base = dequantised_base()
        ref = log_probs(base, rows)
        model = PeftModel.from_pretrained(base, folder / "run").eval()
        policy = log_probs(model, rows)
    margin = BETA * ((policy["chosen"] - ref["chosen"]) - (policy["rejected"] - ref["rejected"]))
    want = {"eval_loss": -torch.nn.functional.logsigmoid(margin).mean().item(),
            "eval_logps/chosen": policy["chosen"].mean().item(),
            "eval_logps/rejected": policy["rejected"].mean().item(),
            "eval_rewards/margins": margin.mean().item(),
            "eval_rewards/accuracies": (margin > 0).double().mean().item()}
    bad = 0
    for name, value in want.items():
        off = abs(ours[name] - value) / max(abs(value), 1e-3)
        allowed = TOLERANCE if "logps" in name else 10 * TOLERANCE
        bad += not off <= allowed or not math.isfinite(off)
        print(f"{name:26} alignd {ours[name]:.7f}  peft {value:.7f}  off by {off:.1e} "
              f"(allowed {allowed:.0e})")
    print("equal" if not bad else f"{bad} values differ")
    return bad != 0


sys.exit(main())
