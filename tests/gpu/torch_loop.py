"""torch_loop.py CASE - the same DPO job as gpu_bench's in PyTorch, transformers and PEFT.

CASE is a JSON file: model, adapter (both start from it), ids (rows of token ids), batch
(pairs of an optimizer step), lr, beta, clip, nf4. Then one request a line on standard input,
"default N" or "tuned N", and one JSON object a line as the answer: N timed steps from the
adapter's start, after one of each batch.

default: TRL's loss and defaults. bfloat16; batches of 8 pairs padded to [chosen; rejected];
the reference in every step, by switching the adapter off; gradient checkpointing; logits of
all tokens; torch's AdamW.
tuned: what TRL's and transformers' options give. The reference cached; no checkpointing;
half the optimizer batch at a time (less where memory ends); logits of replies alone;
FlashAttention 2 where it is installed, else sdpa; fused AdamW.
The base is NF4 where bitsandbytes is, and nf4 asks for it; else bfloat16: the first line says.
On a machine without a GPU it runs on the CPU, to be compared, not timed."""
import importlib.util
import json
import sys
import time

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FLASH = GPU and importlib.util.find_spec("flash_attn") is not None
case = json.load(open(sys.argv[1]))
rows = json.load(open(case["ids"]))
batches = [rows[i:i + case["batch"]] for i in range(0, len(rows), case["batch"])]
quant = "bf16"


def load():
    global quant
    more = {"device_map": {"": 0}} if GPU else {}
    if case["nf4"]:
        try:
            import bitsandbytes
            from transformers import BitsAndBytesConfig
            more["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16)
            quant = "NF4 by bitsandbytes " + bitsandbytes.__version__
        except ImportError:
            quant = "bf16: no bitsandbytes"
    if GPU:
        more["attn_implementation"] = "sdpa"
    try:
        return AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.bfloat16, **more)
    except TypeError:  # before transformers 4.56
        return AutoModelForCausalLM.from_pretrained(case["model"], torch_dtype=torch.bfloat16, **more)


def padded(part):
    """Ids, attention, which positions are targets, and from where on there are any."""
    seqs = [r["prompt"] + r[half] for half in ("chosen", "rejected") for r in part]
    longest = max(map(len, seqs))
    ids = torch.zeros(len(seqs), longest, dtype=torch.long)
    attend, target = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, s in enumerate(seqs):
        ids[i, :len(s)] = torch.tensor(s)
        attend[i, :len(s)] = 1
        target[i, len(part[i % len(part)]["prompt"]):len(s)] = 1
    return ids.to(DEVICE), attend.to(DEVICE), target.to(DEVICE), min(len(r["prompt"]) for r in part) - 1


def sums(model, batch, tuned):
    """Log-probabilities of the replies, added up."""
    ids, attend, target, first = batch
    more = {}
    if tuned and first > 0:
        more["logits_to_keep"] = ids.shape[1] - first
    else:
        first = 0
    # Around each forward: autocast keeps its casts of parameters until it is left.
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=attend, use_cache=False, **more).logits[:, :-1]
    logp = torch.gather(logits.float().log_softmax(-1), 2, ids[:, first + 1:, None])[..., 0]
    return (logp * target[:, first + 1:]).sum(-1)


def settle():
    if GPU:
        torch.cuda.synchronize()


def steps(opt, tuned, micro, n):
    parts = [[padded(b[i:i + micro]) for i in range(0, len(b), micro)] for b in batches]
    seconds, losses, norms = [], [], []
    for step in range(n + len(batches)):
        settle()
        start = time.perf_counter()
        total = 0.0
        opt.zero_grad(set_to_none=True)
        for k, batch in enumerate(parts[step % len(batches)]):
            key = (micro, step % len(batches), k)
            if not tuned or key not in cache:
                with torch.no_grad(), model.disable_adapter():
                    cache[key] = sums(model, batch, tuned)
            c, r = (sums(model, batch, tuned) - cache[key]).chunk(2)
            loss = -F.logsigmoid(case["beta"] * (c - r)).sum() / case["batch"]
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(params, case["clip"]).item())
        opt.step()
        settle()
        seconds.append(time.perf_counter() - start)
        losses.append(total)
    return {"seconds": seconds[len(batches):], "loss": losses, "grad_norm": norms, "micro": micro,
            "peak_bytes": torch.cuda.max_memory_allocated() if GPU else 0}


def run(tuned, n):
    for p, s in zip(params, start_values):
        p.data.copy_(s)
    if tuned:
        model.gradient_checkpointing_disable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if FLASH:
        model.config._attn_implementation = "flash_attention_2" if tuned else "sdpa"
    more = {"fused": True} if tuned and GPU else {}
    opt = torch.optim.AdamW(params, lr=case["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **more)
    micro = (case["batch"] + 1) // 2 if tuned else min(8, case["batch"])
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    while True:
        try:
            return steps(opt, tuned, micro, n)
        except torch.cuda.OutOfMemoryError as e:
            if micro == 1:
                return {"error": str(e)[:300]}
            micro = (micro + 1) // 2
        opt.zero_grad(set_to_none=True)
        for p, s in zip(params, start_values):
            p.data.copy_(s)
        torch.cuda.empty_cache()


cache = {}
base = load()
model = PeftModel.from_pretrained(base, case["adapter"], is_trainable=True, autocast_adapter_dtype=False)
params = [p for p in model.parameters() if p.requires_grad]
for p in params:
    p.data = p.data.float()
start_values = [p.data.clone() for p in params]
model.train()
model.enable_input_require_grads()
print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(0) if GPU else "cpu", "base": quant,
                  "attention, tuned": "FlashAttention 2" if FLASH else "sdpa"}), flush=True)
for line in sys.stdin:
    name, n = line.split()
    answer = run(name == "tuned", int(n))
    if GPU:
        torch.cuda.empty_cache()  # the other program's turn
    print(json.dumps(answer), flush=True)
