#!/usr/bin/env python3
"""make_fixtures.py DATA - what the real libraries say about the project's own models.

Reads the models under DATA (tests/data), writes DATA/fixtures/:
  ../tokenizer_vectors.json   texts and ids: transformers' tokenizers and sentencepiece
  logprobs.json            per-token log-probs of sequences, float32, transformers
  nf4.json                 bitsandbytes 4-bit bytes, absmax, nested codes
Pinned: requirements.txt. Settings: float32, eager attention, one thread."""
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch

import corpus

DATA = Path(sys.argv[1])
OUT = DATA / "fixtures"


def write(name, value):
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    (DATA if name == "tokenizer_vectors.json" else OUT).joinpath(name).write_text(text.replace("},{", "},\n{") + "\n")
    print(name, len(text))


def texts():
    rng = random.Random(11)
    fixed = ["", " ", "  ", "\n", "\t\t x", "Hello world", " Hello", "Hello  world ", "don't you're",
             "3.14159 and 1,000,000", "caf\u00e9 na\u00efve \u00fcber", "\u4f60\u597d\uff0c\u4e16\u754c",
             "\U0001f600\U0001f680 emoji", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
             "zero\u200bwidth", "a\u0301 combining", "tab\tnewline\nend", "</s>", "<s> mid </s> end",
             "USER: hi ASSISTANT: yo</s>", "\u00a0nbsp", "\u2581\u2581 already", "x" * 40,
             "if (a < b) { return a->b; }", "\r\n windows \r\n", "\U0001f468\u200d\U0001f469\u200d\U0001f467"]
    alphabet = "abc XYZ 019.,!?'\n\t\u00e9\u4f60\U0001f600\u2581-_\u0391\u044f"
    while len(fixed) < 60:
        fixed.append("".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))))
    rows = corpus.preference_rows(12, 20)
    fixed += [r["chosen"] for r in rows[:10]] + [corpus.vicuna(r["rejected"], "</s>") for r in rows[10:]]
    return fixed


def tokenizer_vectors():
    from tokenizers import Tokenizer
    import sentencepiece as spm
    out = []
    for folder in ["demo", "tiny64"]:
        tok = Tokenizer.from_file(str(DATA / folder / "tokenizer.json"))
        for i, text in enumerate(texts()):
            special = i % 3 == 0
            out.append({"tokenizer": folder, "text": text, "special": special,
                        "ids": tok.encode(text, add_special_tokens=special).ids})
    sp = spm.SentencePieceProcessor(model_file=str(DATA / "tiny128" / "tokenizer.model"))
    for text in texts():
        if "<s>" in text or "</s>" in text:
            continue  # transformers splits special tokens off before SentencePiece sees them
        out.append({"tokenizer": "tiny128", "text": text, "special": False, "ids": sp.encode(text)})
    write("tokenizer_vectors.json", out)


def logprobs():
    from transformers import LlamaForCausalLM
    out = []
    for folder in ["demo", "tiny64", "tiny128"]:
        model = LlamaForCausalLM.from_pretrained(DATA / folder, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
        rng = random.Random(21)
        for n in [2, 3, 17, 64, 129, 200]:
            ids = [1] + [rng.randrange(3, model.config.vocab_size) for _ in range(n - 1)]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double()
            lp = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            out.append({"model": folder, "ids": ids, "logp": [round(v, 7) for v in lp.tolist()],
                        "sum": lp.sum().item()})
    write("logprobs.json", out)


def nf4():
    import bitsandbytes.functional as F
    out = []
    rng = np.random.default_rng(31)
    cases = [("nf4", 64), ("nf4", 4096), ("fp4", 640), ("nf4", 64 * 300), ("nf4", 64 * 5 + 32)]
    for kind, n in cases:
        x = (rng.standard_normal(n) * 0.02).astype(np.float32)
        x[rng.integers(0, n, max(1, n // 50))] *= 20
        t = torch.from_numpy(x)
        packed, state = F.quantize_4bit(t, blocksize=64, quant_type=kind, compress_statistics=False)
        nested_packed, nested = F.quantize_4bit(t, blocksize=64, quant_type=kind,
                                                compress_statistics=True)
        assert torch.equal(packed, nested_packed)
        back = F.dequantize_4bit(packed, state).flatten()
        back2 = F.dequantize_4bit(nested_packed, nested).flatten()
        keep = min(n, 640)
        out.append({
            "type": kind, "n": n, "x_f32_hex": x.tobytes().hex() if n <= 640 else None,
            "seed_note": None, "x_bf16_hex": None,
            "packed_hex": packed.numpy().tobytes().hex(),
            "absmax": [float(v) for v in state.absmax.flatten()],
            "absmax_q_hex": nested.absmax.numpy().tobytes().hex(),
            "nested_absmax": [float(v) for v in nested.state2.absmax.flatten()],
            "offset": float(nested.offset),
            "dequantized": [float(v) for v in back[:keep]],
            "dequantized_nested": [float(v) for v in back2[:keep]]})
        if n > 640:
            out[-1]["x_f32_hex"] = x.tobytes().hex()
        for key in ("seed_note", "x_bf16_hex"):
            del out[-1][key]
    write("nf4.json", out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for job in (sys.argv[2:] or ["tokenizer_vectors", "logprobs", "nf4"]):
        globals()[job]()
