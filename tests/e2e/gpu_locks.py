"""gpu_locks.py BUILD - a researcher's `align-worker run` and a daemon on the same (simulated) GPUs:
each takes the locks that the other one sees. `run` takes GPUs that are free, or says who has them;
the daemon waits for those of a `run`, and names it; `try` does not come in between."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, Rig, until

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
UUIDS = [f'GPU-63757369-6d2d-6465-7669-63653030{d}00' for d in ('30', '31')]
SETS = ['max_steps=100000', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2', 'max_length=48',
        'lora_r=4', 'device_type=gpu', 'eval={split_from_train: 2}', f'model_name_or_path={ROOT}/tests/data/tiny64']


def devices():
    return [{d['device']: d for d in json.loads(rig.ctl('devices', '--json').stdout)}[u] for u in UUIDS]


def args(verb, name, n):
    sets = [*SETS, f'devices={n}', f'output_dir={rig.dir}/{name}']
    return [str(BUILD / 'worker/align-worker'), verb, str(ROOT / 'tests/data/demo/job.yaml'),
            *(x for s in sets for x in ('--set', s))]


def once(verb, name, n):
    return subprocess.run(args(verb, name, n), env=rig.env, capture_output=True, text=True, timeout=120)


rig = Rig(BUILD)
play = rig.dir / 'play'
play.write_text(''.join(f'gpu {u} Simulated 40960\n' for u in UUIDS))
rig.env.update(ALIGND_BACKEND='sim', CUSIM_DEVICES='2', ALIGND_PLAYED_NVML=str(play),
               LD_LIBRARY_PATH=str(BUILD / 'tests/nvml'), ALIGND_DEVICES_DIR=f'{rig.dir}/d')
rig.env.pop('CUDA_VISIBLE_DEVICES', None)
rig.env.pop('SLURM_JOB_ID', None)
alone = None
try:
    rig.up()
    job = rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, 'devices=1', f'output_dir={rig.dir}/first')
    until('a step', lambda: rig.show(job)['step'] >= 1)
    assert [d['state'] for d in devices()] == ['USED', 'FREE'], devices()

    # Two are wanted, the daemon has one. Nothing is left in the folder.
    r = once('run', 'both', 2)
    assert r.returncode == 1 and f'only 1 of the 2 GPUs here is free: device {UUIDS[0]} is in use by alignd of user ' in r.stderr, r
    assert f'process {rig.pid}' in r.stderr and not (rig.dir / 'both').exists(), r.stderr

    # One is wanted: the other one is taken.
    with open(rig.dir / 'alone.out', 'w') as out:
        alone = subprocess.Popen(args('run', 'alone', 1), env=rig.env, stdout=out, stderr=subprocess.STDOUT)
    log = rig.dir / 'alone/attempts/1/rank-0.log'
    until('a rank', lambda: log.exists() and 'gpu=' in log.read_text())
    assert f'gpu={UUIDS[1]}' in log.read_text(), log.read_text()
    until('FOREIGN', lambda: devices()[1]['state'] == 'FOREIGN', 20)
    why = devices()[1]['reason']
    assert why.startswith('align-worker of user ') and f'process {alone.pid} has its lock' in why, why
    late = rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, 'devices=2', f'output_dir={rig.dir}/late')
    rig.ctl('cancel', job)
    said = until('a reason', lambda: (lambda s: s['reason'] == 'DevicesForeign' and s['reason_text'])(rig.show(late)), 20)
    assert f'process {alone.pid}' in said, said
    until('the first GPU', lambda: rig.state_of(job) == 'CANCELLED')
    until('a try on it', lambda: once('try', 'try', 1).returncode == 0)

    # However it ends.
    alone.send_signal(signal.SIGKILL)
    alone.wait()
    alone = None
    until('its end', lambda: 'until a moment ago' in devices()[1]['reason'], 20)
    print('ok')
finally:
    if alone:
        alone.kill()
    rig.close()
