#!/usr/bin/env python3
"""make_trl.py DATA - 20 steps of LoRA DPO and of QLoRA SFT by the real TRL trainers.

On DATA/tiny128 (every dimension divisible by 64), float32, adapters float32,
dropout 0, accumulation 1, one CPU device, rows in the order given. Writes
DATA/fixtures/trl/{dpo,sft}.json (token ids as TRL made them, losses, gradient
norms, learning rates, the other logged values) and the adapter both start from,
adapter_model.safetensors with adapter_config.json."""
import json
import os
import random
import sys
from pathlib import Path

os.environ["BNB_CPU_AVX512_BF16"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

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


def record(name, trainer, settings, ids):
    log = [{k: v for k, v in row.items() if not k.endswith(("runtime", "per_second"))}
           for row in trainer.state.log_history if "loss" in row]
    assert len(log) == STEPS, len(log)
    text = json.dumps({"settings": settings, "rows": ids, "log": log}, separators=(",", ":"))
    (OUT / f"{name}.json").write_text(text.replace("},{", "},\n{") + "\n")
    print(name, len(text), log[0], log[-1], sep="\n")


def dpo(tok):
    model = LlamaForCausalLM.from_pretrained(DATA / "tiny128", dtype=torch.float32,
                                             attn_implementation="eager")
    settings = dict(learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=2, beta=0.1,
                    weight_decay=0.01)
    trainer = DPOTrainer(model=model, args=DPOConfig(output_dir="/tmp/alignd-oracle", **settings,
                                                     **COMMON),
                         train_dataset=Dataset.from_list(rows()), processing_class=tok,
                         peft_config=LoraConfig(**LORA))
    start_from(trainer, True)
    ids = [{k: r[k + "_ids"] for k in ("prompt", "chosen", "rejected")}
           for r in trainer.train_dataset]
    trainer.train()
    record("dpo", trainer, settings | LORA | {"batch": BATCH, "model": "tiny128"}, ids)


def sft(tok):
    quant = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                               bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(DATA / "tiny128", dtype=torch.float32,
                                             attn_implementation="eager",
                                             quantization_config=quant, device_map={"": "cpu"})
    settings = dict(learning_rate=2e-3, lr_scheduler_type="linear", warmup_steps=0,
                    weight_decay=0.0)
    data = Dataset.from_list([{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows()])
    trainer = SFTTrainer(model=model, args=SFTConfig(output_dir="/tmp/alignd-oracle", **settings,
                                                     **COMMON),
                         train_dataset=data, processing_class=tok, peft_config=LoraConfig(**LORA))
    start_from(trainer, False)
    ids = []
    for r in trainer.train_dataset:
        mask = r.get("completion_mask") or [int(x != -100) for x in r["labels"]]
        n = mask.index(1)
        ids.append({"prompt": r["input_ids"][:n], "completion": r["input_ids"][n:]})
    trainer.train()
    record("sft", trainer, settings | LORA | {"batch": BATCH, "model": "tiny128", "quant": "nf4",
                                              "double_quant": True}, ids)


def main():
    torch.set_num_threads(2)
    OUT.mkdir(parents=True, exist_ok=True)
    tok = PreTrainedTokenizerFast(tokenizer_file=str(DATA / "tiny64" / "tokenizer.json"),
                                  bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                  pad_token="<unk>")
    dpo(tok)
    sft(tok)
    (OUT / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
