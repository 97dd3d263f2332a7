"""torch_loop.py CASE - the same DPO job as gpu_bench's in PyTorch, transformers and PEFT.

CASE is a JSON file: model, adapter (both start from it), ids (rows of token ids), batch
(pairs of an optimizer step), micro (pairs of a forward), steps, lr, beta, clip, nf4. TRL's
loss and its defaults: batches padded to [chosen; rejected], the reference computed in every
step by switching the adapter off, gradient checkpointing; then the same with the reference
cached and without checkpointing. On a machine without a GPU it runs on the CPU, to be
compared, not timed. Prints one JSON object."""
import json
import sys
import time

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
case = json.load(open(sys.argv[1]))
rows = json.load(open(case["ids"]))
batches = [rows[i:i + case["batch"]] for i in range(0, len(rows), case["batch"])]
quant = "bf16"


def load():
    global quant
    more = {}
    if case["nf4"]:
        try:
            import bitsandbytes  # noqa: F401
            from transformers import BitsAndBytesConfig
            more["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16)
            quant = "nf4 by bitsandbytes " + bitsandbytes.__version__
        except ImportError:
            quant = "bf16: no bitsandbytes"
    more |= {"attn_implementation": "sdpa", "device_map": {"": 0}} if DEVICE == "cuda" else {}
    try:
        return AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.bfloat16, **more)
    except TypeError:  # before transformers 4.56
        return AutoModelForCausalLM.from_pretrained(case["model"], torch_dtype=torch.bfloat16, **more)


def padded(part):
    seqs = [r["prompt"] + r[half] for half in ("chosen", "rejected") for r in part]
    longest = max(map(len, seqs))
    ids = torch.zeros(len(seqs), longest, dtype=torch.long)
    attend, target = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, s in enumerate(seqs):
        ids[i, :len(s)] = torch.tensor(s)
        attend[i, :len(s)] = 1
        target[i, len(part[i % len(part)]["prompt"]):len(s)] = 1
    return ids.to(DEVICE), attend.to(DEVICE), target.to(DEVICE)


def sums(model, batch):
    ids, attend, target = batch
    logits = model(input_ids=ids, attention_mask=attend, use_cache=False).logits[:, :-1]
    logp = torch.gather(logits.float().log_softmax(-1), 2, ids[:, 1:, None])[..., 0]
    return (logp * target[:, 1:]).sum(-1)


def settle():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def steps(model, params, opt, default):
    parts = [[padded(b[i:i + case["micro"]]) for i in range(0, len(b), case["micro"])] for b in batches]
    cache, seconds, losses, norms = {}, [], [], []
    for step in range(case["steps"] + 2 * len(batches)):
        settle()
        start = time.perf_counter()
        total = 0.0
        opt.zero_grad(set_to_none=True)
        for k, batch in enumerate(parts[step % len(batches)]):
            key = (step % len(batches), k)
            if default or key not in cache:
                with torch.no_grad(), model.disable_adapter():
                    cache[key] = sums(model, batch)
            c, r = (sums(model, batch) - cache[key]).chunk(2)
            loss = -F.logsigmoid(case["beta"] * (c - r)).sum() / case["batch"]
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(params, case["clip"]).item())
        opt.step()
        settle()
        seconds.append(time.perf_counter() - start)
        losses.append(total)
    return {"seconds": seconds[2 * len(batches):], "loss": losses, "grad_norm": norms,
            "peak_bytes": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0}


def run(default):
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = PeftModel.from_pretrained(base, case["adapter"], is_trainable=True, autocast_adapter_dtype=False)
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params:
        p.data = p.data.float()
    model.train()
    if default:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    opt = torch.optim.AdamW(params, lr=case["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = steps(model, params, opt, default)
    model.gradient_checkpointing_disable()
    model.unload()
    return out


base = load()
answer = {}
for name, default in (("cached", False), ("default", True)):
    try:
        answer[name] = run(default)
    except torch.cuda.OutOfMemoryError as e:
        answer[name] = {"error": str(e)[:300]}
        torch.cuda.empty_cache()
print(json.dumps({"version": torch.__version__, "device": torch.cuda.get_device_name(0) if DEVICE == "cuda" else "cpu", "base": quant,
                  **answer}))
