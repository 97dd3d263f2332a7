#!/usr/bin/env python3
"""make_trl.py DATA [8bit] - 20 steps of LoRA DPO and of QLoRA SFT by the real TRL trainers.

On DATA/tiny128 (every dimension divisible by 64), float32, adapters float32,
dropout 0, accumulation 1, one CPU device, rows in the order given. Writes
DATA/fixtures/trl/{dpo,sft}.json (token ids as TRL made them, losses, gradient
norms, learning rates, the other logged values) and the adapter both start from,
adapter_model.safetensors with adapter_config.json.

With 8bit, DATA/fixtures/trl/{dpo,sft}_8bit.json instead: the same rows and settings with
optim adamw_bnb_8bit, and rank 33, so that most matrices have 8-bit moments (4,096 elements
or more), some not, and blocks of less than 256 stand at the ends; the start is start_of().
"log" is bitsandbytes' CPU backend as it is; "nearest" the same training with that backend's
quantisation by a table of 65,536 steps replaced by the rule of bitsandbytes' CUDA kernel:
the nearest code, a tie to the even one, below 0 never to 0."""
import functools
import json
import os
import random
import sys
from pathlib import Path

os.environ["BNB_CPU_AVX512_BF16"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import bitsandbytes.backends.cpu.ops as bnb_cpu
import numpy
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import corpus

DATA = Path(sys.argv[1])
OUT = DATA / "fixtures" / "trl"
STEPS, BATCH = 20, 4
LORA = dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                            "down_proj"])
COMMON = dict(per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, max_steps=STEPS,
              logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
              fp16=False, max_length=256, train_sampling_strategy="sequential", seed=1,
              gradient_checkpointing=False, max_grad_norm=1.0, dataloader_drop_last=False)


def rows():
    rng = random.Random(41)
    out = []
    for _ in range(STEPS * BATCH):
        pair = corpus.pair(rng)
        cut = pair["chosen"].rindex("\n\nAssistant:") + len("\n\nAssistant:")
        prompt = corpus.vicuna(pair["chosen"][:cut].rstrip(), "</s>").rstrip()
        out.append({"prompt": prompt, "chosen": " " + pair["chosen"][cut:].strip(),
                    "rejected": " " + pair["rejected"][cut:].strip()})
    return out


def start_from(trainer, first):
    """Adapters in float32, A from a seeded generator, B = 0: the same for both runs."""
    gen = torch.Generator().manual_seed(5)
    for name, p in sorted(trainer.model.named_parameters()):
        if not p.requires_grad:
            continue
        p.data = p.data.float()
        if "lora_A" in name:
            bound = p.shape[1] ** -0.5
            p.data.copy_((torch.rand(p.shape, generator=gen) * 2 - 1) * bound)
        else:
            p.data.zero_()
    if first:
        trainer.model.save_pretrained(OUT, selected_adapters=["default"])


def start_of(shape):
    """A matrix that a few lines of C make as well; exact but for the last product."""
    i = numpy.arange(shape[0] * shape[1], dtype=numpy.uint32) * numpy.uint32(2654435761)
    unit = (i >> 8).astype(numpy.float32) * numpy.float32(2.0**-23) - numpy.float32(1)
    return torch.from_numpy((unit * numpy.float32(shape[1] ** -0.5)).reshape(shape))


def start_8bit(trainer, first):
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            p.data = start_of(p.shape) if "lora_A" in name else torch.zeros(p.shape)


def nearest(values, code, scale, out, blocksize):
    """bitsandbytes' kQuantizeBlockwise, csrc/kernels.cu, dQuantize."""
    flat, code = values.reshape(-1).numpy(), code.numpy()
    middle = (code[:-1] + code[1:]) * numpy.float32(0.5)
    odd = numpy.arange(255) % 2 == 1
    above = numpy.where(odd, numpy.nextafter(middle, numpy.float32(-2)), middle)
    if code[0] < 0:
        above[126] = numpy.nextafter(numpy.float32(0), numpy.float32(-1))
    for b in range(0, flat.size, blocksize):
        block = flat[b:b + blocksize]
        most = numpy.abs(block).max()
        x = block / most if most > 0 else block
        out.view(-1)[b:b + blocksize] = torch.from_numpy(
            numpy.searchsorted(above, x, side="left").astype(numpy.uint8))
        scale[b // blocksize] = float(most)


def logged(trainer):
    log = [{k: v for k, v in row.items() if not k.endswith(("runtime", "per_second"))}
           for row in trainer.state.log_history if "loss" in row]
    assert len(log) == STEPS, len(log)
    return log


def record_8bit(name, run, tok):
    """Twice: with either quantisation."""
    original, out = bnb_cpu._quant_blockwise_fp32_direct, {}
    lora = LORA | {"r": 33, "lora_alpha": 66}
    for key, quantise in (("log", original),
                          ("nearest", lambda a, code, scale, to, bs: nearest(a, code, scale, to, bs))):
        bnb_cpu._quant_blockwise_fp32_direct = quantise
        trainer, settings, _ = run(tok, start_8bit, False, lora, optim="adamw_bnb_8bit")
        out["settings"], out[key] = settings, logged(trainer)
        held = trainer.optimizer.optimizer.state.values()
        out["settings"]["8-bit tensors"] = sum(s["state1"].dtype == torch.uint8 for s in held)
        print(name, key, out["settings"], out[key][0], out[key][-1], sep="\n")
    bnb_cpu._quant_blockwise_fp32_direct = original
    text = json.dumps(out, separators=(",", ":"))
    (OUT / f"{name}.json").write_text(text.replace("},{", "},\n{") + "\n")


def record(name, trainer, settings, ids):
    log = logged(trainer)
    text = json.dumps({"settings": settings, "rows": ids, "log": log}, separators=(",", ":"))
    (OUT / f"{name}.json").write_text(text.replace("},{", "},\n{") + "\n")
    print(name, len(text), log[0], log[-1], sep="\n")


def dpo(tok, start=start_from, first=True, lora=LORA, **more):
    model = LlamaForCausalLM.from_pretrained(DATA / "tiny128", dtype=torch.float32,
                                             attn_implementation="eager")
    settings = dict(learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=2, beta=0.1,
                    weight_decay=0.01, **more)
    trainer = DPOTrainer(model=model, args=DPOConfig(output_dir="/tmp/alignd-oracle", **settings,
                                                     **COMMON),
                         train_dataset=Dataset.from_list(rows()), processing_class=tok,
                         peft_config=LoraConfig(**lora))
    start(trainer, first)
    ids = [{k: r[k + "_ids"] for k in ("prompt", "chosen", "rejected")}
           for r in trainer.train_dataset]
    trainer.train()
    return trainer, settings | lora | {"batch": BATCH, "model": "tiny128"}, ids


def sft(tok, start=start_from, first=False, lora=LORA, quantised=True, **more):
    quant = dict(quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32), device_map={"": "cpu"}) if quantised else {}
    model = LlamaForCausalLM.from_pretrained(DATA / "tiny128", dtype=torch.float32,
                                             attn_implementation="eager", **quant)
    settings = dict(learning_rate=2e-3, lr_scheduler_type="linear", warmup_steps=0,
                    weight_decay=0.0, **more)
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()])
    trainer = SFTTrainer(model=model, args=SFTConfig(output_dir="/tmp/alignd-oracle", **settings,
                                                     **COMMON),
                         train_dataset=data, processing_class=tok, peft_config=LoraConfig(**lora))
    start(trainer, first)
    ids = []
    for r in trainer.train_dataset:
        mask = r.get("completion_mask") or [int(x != -100) for x in r["labels"]]
        n = mask.index(1)
        ids.append({"prompt": r["input_ids"][:n], "completion": r["input_ids"][n:]})
    trainer.train()
    settings = settings | lora | {"batch": BATCH, "model": "tiny128"}
    if quantised:
        settings |= {"quant": "nf4", "double_quant": True}
    return trainer, settings, ids


def main():
    torch.set_num_threads(2)
    OUT.mkdir(parents=True, exist_ok=True)
    tok = PreTrainedTokenizerFast(tokenizer_file=str(DATA / "tiny64" / "tokenizer.json"),
                                  bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                  pad_token="<unk>")
    if sys.argv[2:] == ["8bit"]:
        record_8bit("dpo_8bit", dpo, tok)
        # float32: of NF4 our base differs by rounding, and 8 bits make more of such a difference
        record_8bit("sft_8bit", functools.partial(sft, quantised=False), tok)
        return
    record("dpo", *dpo(tok))
    record("sft", *sft(tok))
    (OUT / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
