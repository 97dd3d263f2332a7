"""sim_stopped.py BUILD - a rank of two simulated GPUs stands still in the middle of training. NCCL
would wait; the supervisor finds the silence after 30 s, ends that rank and tells the other one,
which gives its collective up at once."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, kill

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
DIR = Path(tempfile.mkdtemp(prefix='alignd-stopped-', dir='/tmp'))
try:
    rows = [{'prompt': f'\n\nHuman: the cat {i}\n\nAssistant:', 'chosen': ' runs home', 'rejected': ' sings'} for i in range(8)]
    (DIR / 'rows.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    job = {'name': 'stopped', 'method': 'dpo', 'model_name_or_path': str(ROOT / 'tests/data/tiny64'), 'load_in_4bit': True,
           'lora_r': 4, 'lora_target_modules': 'all-linear', 'bf16': True, 'max_steps': 1000, 'train_batch_size': 2,
           'train': [{'path': str(DIR / 'rows.jsonl'), 'format': 'preference', 'template': 'none'}], 'max_length': 64,
           'save_steps': 1, 'devices': 2, 'device_type': 'gpu', 'output_dir': str(DIR / 'out')}
    (DIR / 'job.json').write_text(json.dumps(job))
    process = subprocess.Popen([str(BUILD / 'worker/align-worker'), 'run', str(DIR / 'job.json')], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               env=dict(os.environ, ALIGND_BACKEND='sim', CUSIM_DEVICES='2'))
    end = time.monotonic() + 120
    while not (DIR / 'out/checkpoint-1').exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)
    ranks = json.loads((DIR / 'out/.gang/pids.json').read_text())['ranks']
    assert kill(ranks[1], signal.SIGSTOP)
    began = time.monotonic()
    said = process.communicate(timeout=120)[0]
    took = time.monotonic() - began
    ends = json.loads((DIR / 'out/.gang/exit.json').read_text())
    assert ends['first_rank'] == 1 and 'silent' in ends['error'], (ends, said)
    assert ends['ranks'][0]['code'] == 75 and ends['ranks'][1]['signal'] == signal.SIGKILL, (ends, said)
    assert 20 < took < 60, took
    print(f'found after {took:.0f} s: {ends["error"]}')
finally:
    shutil.rmtree(DIR, ignore_errors=True)
