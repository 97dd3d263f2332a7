#!/usr/bin/env python3
"""make_models.py OUT - makes the small models and data the tests and the demo use.

  demo/     ~1 M parameters, BF16, ByteLevel BPE tokenizer.json, tied head;
            preference.train.jsonl.gz in HH-RLHF form
  tiny64/   hidden 64, head_dim 8, intermediate 172, F32, tied;
            tokenizer.json, BPE with byte fallback
  tiny128/  every dimension divisible by 64, F16, two shards, untied;
            tokenizer.model (SentencePiece) only

Pinned: see requirements.txt. The result is committed under tests/data; run
again only to change it (weights differ in the last bits between machines)."""
import gzip
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import corpus

BOS, EOS, UNK = "<s>", "</s>", "<unk>"


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def tokenizer_config(out, add_bos=True):
    write_json(out / "tokenizer_config.json",
               {"add_bos_token": add_bos, "add_eos_token": False, "bos_token": BOS,
                "eos_token": EOS, "unk_token": UNK, "model_max_length": 512,
                "clean_up_tokenization_spaces": False,
                "tokenizer_class": "PreTrainedTokenizerFast"})


def bos_processor(tok):
    bos = tok.token_to_id(BOS)
    return processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B",
                                         special_tokens=[(BOS, bos)])


def bytelevel_tokenizer(out, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[UNK, BOS, EOS],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus.documents(1, 4000, EOS), trainer)
    tok.post_processor = bos_processor(tok)
    tok.save(str(out / "tokenizer.json"))
    tokenizer_config(out)
    return lambda text: tok.encode(text, add_special_tokens=False).ids


def sentencepiece_model(out, vocab):
    import sentencepiece as spm
    lines = (t.replace(EOS, "") for t in corpus.documents(2, 3000, EOS))
    with open(out / "tokenizer.model", "wb") as model:  # a file name would stand in the model
        spm.SentencePieceTrainer.Train(
            sentence_iterator=lines, model_writer=model, vocab_size=vocab, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            character_coverage=1.0, bos_piece=BOS, eos_piece=EOS, unk_piece=UNK, minloglevel=2)
    return spm.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))


def byte_fallback_json(out, vocab):
    """A Llama-2 style tokenizer.json: the pieces of a SentencePiece BPE, its merges in
    score order, byte fallback, and the Prepend/Replace normalizers."""
    sp = sentencepiece_model(out, vocab)
    (out / "tokenizer.model").unlink()
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    ids = {p: i for i, p in enumerate(pieces)}
    merges = []
    for whole, i in ids.items():
        if i < 3 + 256 or len(whole) < 2:
            continue
        local = [(ids[whole[:k]], ids[whole[k:]], whole[:k], whole[k:])
                 for k in range(1, len(whole)) if whole[:k] in ids and whole[k:] in ids]
        merges += [(-sp.get_score(i), a, b, left, right) for a, b, left, right in sorted(local)]
    merges = [[m[3], m[4]] for m in sorted(merges, key=lambda m: (m[0], m[1], m[2]))]
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, t in enumerate([UNK, BOS, EOS])]
    write_json(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": BOS, "type_id": 0}},
                                      {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                                    {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": UNK,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": ids, "merges": merges}})
    tokenizer_config(out)
    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    return lambda text: tok.encode(text, add_special_tokens=False).ids


def train(config, encode, documents, steps, batch=32, length=128, lr=3e-3, seed=1):
    """Packs the documents into rows of `length` tokens and trains with AdamW."""
    torch.manual_seed(seed)
    stream = []
    for text in documents:
        stream += [1] + encode(text)
    rows = torch.tensor(stream[:len(stream) // length * length]).view(-1, length)
    model = LlamaForCausalLM(config).float()
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=0.1)
    gen = torch.Generator().manual_seed(seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {rows.numel():,} tokens")
    for step in range(steps):
        ids = rows[torch.randint(len(rows), (batch,), generator=gen)]
        loss = model(input_ids=ids, labels=ids).loss
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        plan.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    return model


def save(model, out, dtype, shards=1):
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    config = model.config.to_dict()
    keep = ["attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act",
            "hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias",
            "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
            "tie_word_embeddings", "vocab_size"]
    write_json(out / "config.json", {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                                     "torch_dtype": name, "rope_theta": 10000.0,
                                     **{k: config[k] for k in keep}})
    tensors = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()
               if not (k == "lm_head.weight" and config["tie_word_embeddings"])}
    if shards == 1:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return
    names, where = sorted(tensors), {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        where.update({n: file for n in part})
        save_file(part, out / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(out / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": where})


def config(**kw):
    return LlamaConfig(bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5, hidden_act="silu",
                       attention_bias=False, mlp_bias=False, **kw)


def main():
    out = Path(sys.argv[1])
    only = sys.argv[2:] or ["demo", "tiny64", "tiny128"]
    for name in only:
        (out / name).mkdir(parents=True, exist_ok=True)
    if "demo" in only:
        demo = out / "demo"
        encode = bytelevel_tokenizer(demo, 1024)
        model = train(config(vocab_size=1024, hidden_size=128, intermediate_size=384, head_dim=32,
                             num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
                             max_position_embeddings=512, tie_word_embeddings=True),
                      encode, corpus.documents(3, 12000, EOS), 700)
        save(model, demo, torch.bfloat16)
        rows = corpus.preference_rows(4, 2200)
        with gzip.GzipFile(demo / "preference.jsonl.gz", "wb", mtime=0) as f:
            f.write("".join(json.dumps(r) + "\n" for r in rows).encode())
    if "tiny64" in only:
        encode = byte_fallback_json(out / "tiny64", 512)
        model = train(config(vocab_size=512, hidden_size=64, intermediate_size=172, head_dim=8,
                             num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4,
                             max_position_embeddings=512, tie_word_embeddings=True),
                      encode, corpus.documents(5, 3000, EOS), 200)
        save(model, out / "tiny64", torch.float32)
    if "tiny128" in only:
        sp = sentencepiece_model(out / "tiny128", 512)
        tokenizer_config(out / "tiny128")
        model = train(config(vocab_size=512, hidden_size=128, intermediate_size=192, head_dim=64,
                             num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                             max_position_embeddings=512, tie_word_embeddings=False),
                      lambda t: sp.encode(t.replace(EOS, "")) + [2], corpus.documents(6, 3000, EOS),
                      200)
        save(model, out / "tiny128", torch.float16, shards=2)


if __name__ == "__main__":
    main()
