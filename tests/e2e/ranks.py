"""ranks.py BUILD [N...] - a run on many ranks is the run on one, as docs/NUMERICS.md says: the
first loss to the bit, the first gradient norm within 1e-6, losses within 1e-4, the last
evaluation within 1 %. Real processes over Gloo; 8 and 16 of them without further words."""
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, ROOT

BUILD = Path(sys.argv[1]).resolve()
RANKS = [int(n) for n in sys.argv[2:]] or [8, 16]
DIR = Path(tempfile.mkdtemp(prefix='alignd-ranks-', dir='/tmp'))
JOB = f'''method: dpo
model_name_or_path: {ROOT}/tests/data/tiny64
load_in_4bit: true
train: [{{path: {DEMO}/preference.jsonl.gz, format: hh-rlhf, template: vicuna, samples: 64}}]
eval: {{split_from_train: 20}}
max_steps: 8
learning_rate: 1.0e-3
train_batch_size: 17
max_length: 160
lora_r: 4
threads_per_device: 1
device_type: cpu
'''


def run(n):
    out = DIR / str(n)
    began = time.monotonic()
    done = subprocess.run([str(BUILD / 'worker/align-worker'), 'run', str(DIR / 'job.yaml'), '--set', f'devices={n}',
                           '--set', f'output_dir={out}'], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done
    print(f'{n} ranks: {time.monotonic() - began:.1f} s')
    rows = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    return [r for r in rows if r['kind'] == 'train'], [r for r in rows if r['kind'] == 'eval'][-1]


def near(a, b, share):
    return abs(a - b) <= share * abs(b)


try:
    (DIR / 'job.yaml').write_text(JOB)
    steps, last = run(1)
    assert len(steps) == 8 and abs(steps[-1]['loss'] - steps[0]['loss']) > 1e-3, steps
    for n in RANKS:
        many, end = run(n)
        assert len(many) == len(steps)
        assert many[0]['loss'] == steps[0]['loss'], (n, many[0], steps[0])
        assert near(many[0]['grad_norm'], steps[0]['grad_norm'], 1e-6), (n, many[0], steps[0])
        for a, b in zip(many, steps):
            assert near(a['loss'], b['loss'], 1e-4) and a['num_tokens'] == b['num_tokens'], (n, a, b)
        assert near(end['eval_loss'], last['eval_loss'], 0.01), (n, end, last)
        worst = max(abs(a['loss'] - b['loss']) / b['loss'] for a, b in zip(many, steps))
        print(f'{n} ranks: losses within {worst:.1e}')
finally:
    shutil.rmtree(DIR, ignore_errors=True)
