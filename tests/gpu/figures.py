"""figures.py - what tests/gpu/run holds its measurements against: shapes, the work a step really
needs, its floor on this machine's measured ceilings, the bars, and the predictions that stand in
docs/performance.md."""
import re
from pathlib import Path

MISTRAL = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128,
           "intermediate": 14336, "vocab": 32000, "window": 0}
TINY = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 172,
        "vocab": 259, "window": 0}
# name, method, prompt, chosen, rejected, examples of an optimizer step
SHAPES = [("DPO 150/280/280", "dpo", 150, 280, 280, 22), ("SFT 8 x 1,024", "sft", 1, 1023, 0, 8),
          ("DPO 120/55/55", "dpo", 120, 55, 55, 70), ("DPO 700/250/250", "dpo", 700, 250, 250, 12),
          ("DPO 512/512/512", "dpo", 512, 512, 512, 10)]
TINY_SHAPES = [("DPO 12/6/5", "dpo", 12, 6, 5, 3), ("SFT 2 x 20", "sft", 1, 19, 0, 2)]
RANK = 16

# On an H200 as they stand; on another GPU these shares of the floor.
H200 = {"SFT 8 x 1,024": ("tokens/s", 18000), "DPO 150/280/280": ("pairs/s", 25)}
SHARE = {"SFT 8 x 1,024": 0.79, "DPO 150/280/280": 0.74}
READY_S, DEFAULT_TIMES, TUNED_TIMES, MEMORY_SHARE = 5.0, 4.0, 1.0, 0.05


def work(shape, p, c, j):
    """Of one example: operations in products, in attention, and bytes of everything else. Forward
    and input gradients of the frozen base, prompt once, head on reply rows, adapters; nothing for
    reference or recompute. Bytes: reference performance 2a, pointwise kernels and adapters fused."""
    d, q, kv, f = shape["hidden"], shape["heads"] * shape["head_dim"], shape["kv_heads"] * shape["head_dim"], shape["intermediate"]
    linear = d * (q + 2 * kv) + q * d + 3 * d * f
    lora = RANK * (3 * d + q + 2 * kv + q + d + 2 * (d + f) + f + d)
    tokens, layers = p + c + j, shape["layers"]
    seen = p * p / 2 + (c + j) * p + c * c / 2 + j * j / 2
    products = tokens * layers * (4 * linear + 6 * lora) + 4 * (c + j) * d * shape["vocab"]
    h, g = 2 * d, 2 * f
    return products, 4 * seen * q * layers, tokens * layers * ((17 + 9.5) * h + (9 + 4) * g)


def flops(shape, p, c, j):
    products, attention, _ = work(shape, p, c, j)
    return products + 3.5 * attention


def floor_seconds(shape, p, c, j, ceilings):
    """Of one example: products at the measured rate, attention at the share of it that cuDNN's
    published rates are of 790 TFLOP/s (by the length of a sequence), bytes at the copy's rate."""
    products, attention, moved = work(shape, p, c, j)
    length = p + max(c, j)
    forward, backward = (330, 230) if length < 768 else (400, 290) if length < 1536 else (484, 370)
    rate = ceilings["product_flops"]
    return (products / rate + attention * 790 / rate * (1 / forward + 2.5 / backward) +
            moved / ceilings["copy_bytes_per_s"])


def key_of(what):
    return re.sub(r"[^a-z0-9/]+", " ", what.lower()).strip()


def predictions():
    """What -> predicted, from the tables of docs/performance.md headed `| what | predicted |`."""
    text = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
    found, inside = {}, False
    for line in text.read_text().splitlines() if text.is_file() else []:
        cells = [x.strip() for x in line.strip().strip("|").split("|")]
        if line.startswith("| what | predicted |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|-: "):
            found[key_of(cells[0])] = cells[1]
    return found


class Bars:
    """Measured beside predicted, and where there is a bar, whether it is reached: a miss is told,
    it is no failed check."""

    def __init__(self, result):
        self.predicted, self.rows = predictions(), result.setdefault("outcomes", [])

    def add(self, what, measured, unit, bar=None, least=True, note=""):
        reached = None if bar is None else bool(measured >= bar if least else measured <= bar)
        row = {"what": what, "predicted": self.predicted.get(key_of(what)), "measured": measured, "unit": unit,
               "bar": bar, "pass": reached, "note": note}
        self.rows[:] = [x for x in self.rows if x["what"] != what] + [row]
        return row

    def line(self, row):
        bar = "" if row["bar"] is None else f"{'pass' if row['pass'] else 'MISS'} (bar {row['bar']:.4g})"
        return (f"  {row['what']:<38}{(row['predicted'] or '-')[:26]:<27}{row['measured']:>9.4g} {row['unit']:<10}{bar:<22}{row['note']}").rstrip()

    def table(self):
        print(f"  {'':<38}{'predicted':<27}{'measured':>9}")
        for row in self.rows:
            print(self.line(row))
