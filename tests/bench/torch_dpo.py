"""torch_dpo.py CASE - a PyTorch + PEFT loop doing the same DPO job as alignd.

CASE is a JSON file: model, adapter (both start from it), rows of token ids (one
optimizer step is all of them), steps, threads, lr, betas, beta, clip. Prints one
JSON object: losses, gradient norms, seconds per step, for a loop as TRL's default
(reference forward in every step) and for one with cached reference log-probs."""
import json
import sys
import time

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

case = json.load(open(sys.argv[1]))
torch.set_num_threads(case["threads"])


def padded(rows):
    """[chosen...; rejected...], right-padded to one length, as TRL's collator."""
    seqs = [r["prompt"] + r[half] for half in ("chosen", "rejected") for r in rows]
    longest = max(map(len, seqs))
    ids = torch.zeros(len(seqs), longest, dtype=torch.long)
    attend, target = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, s in enumerate(seqs):
        ids[i, :len(s)] = torch.tensor(s)
        attend[i, :len(s)] = 1
        target[i, len(rows[i % len(rows)]["prompt"]):len(s)] = 1
    return ids, attend, target


def sums(model, batch):
    ids, attend, target = batch
    logits = model(input_ids=ids, attention_mask=attend, use_cache=False).logits[:, :-1]
    logp = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None])[..., 0]
    return (logp * target[:, 1:]).sum(-1)


def train(cached):
    base = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32,
                                                attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, case["adapter"], is_trainable=True)
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=case["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    batch, ref = padded(case["rows"]), None
    losses, norms, seconds = [], [], []
    for _ in range(case["steps"]):
        start = time.perf_counter()
        if ref is None or not cached:
            with torch.no_grad(), model.disable_adapter():
                ref = sums(model, batch)
        c, r = (sums(model, batch) - ref).chunk(2)
        loss = -F.logsigmoid(case["beta"] * (c - r)).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, case["clip"])
        opt.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        norms.append(norm.item())
    return {"loss": losses, "grad_norm": norms, "seconds": seconds}


print(json.dumps({"version": torch.__version__, "default": train(False), "cached": train(True)}))
