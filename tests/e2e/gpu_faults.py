"""gpu_faults.py BUILD - real training on simulated GPUs (backend sim) under a management library
that plays a file: `device_type: auto` takes GPUs, every rank has the one it was given, `devices`
and `watch` show them; an Xid in mid-training fences the GPU and names it, and the job ends on
another one with the bytes of a run that was left alone; the driver hangs meanwhile. The same when
the rank has died of its GPU before the driver says a word."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, Rig, kill, until

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
UUIDS = [f'GPU-63757369-6d2d-6465-7669-63653030{d}00' for d in ('30', '31', '32')]
SETS = ['max_steps=8', 'save_steps=1', 'eval_steps=100000', 'train_batch_size=2', 'max_length=48',
        'lora_r=4', 'device_type=auto', 'eval={split_from_train: 2}', 'devices=2', 'load_in_4bit=true',
        f'model_name_or_path={ROOT}/tests/data/tiny64']


class World:
    def __init__(self, rig):
        self.file = rig.dir / 'play'
        self.lines = [f'gpu {u} Simulated_{i} 40960' for i, u in enumerate(UUIDS)]
        self.play()

    def play(self, *more):
        part = self.file.with_suffix('.part')
        part.write_text('\n'.join([*self.lines, *more]) + '\n')
        part.replace(self.file)


def devices(rig):
    return {d['device']: d for d in json.loads(rig.ctl('devices', '--json').stdout)}


def submit(rig, name):
    return rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, f'output_dir={rig.dir}/{name}')


def done(rig, job):
    assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'NODE_FAIL'}, 240) == 'COMPLETED', rig.show(job)
    return rig.show(job)


rig = Rig(BUILD)
world = World(rig)
rig.env.update(ALIGND_BACKEND='sim', CUSIM_DEVICES='3', ALIGND_PLAYED_NVML=str(world.file),
               LD_LIBRARY_PATH=str(BUILD / 'tests/nvml'))
rig.env.pop('CUDA_VISIBLE_DEVICES', None)
rig.env.pop('SLURM_JOB_ID', None)
try:
    rig.up()
    assert [devices(rig)[u]['state'] for u in UUIDS] == ['FREE'] * 3, devices(rig)

    # Left alone; what is decided for auto is in the kept spec.
    job = submit(rig, 'alone')
    spec = json.loads(rig.ctl('show', job, '--spec', '--json').stdout)
    assert '"gpu"' in json.dumps(spec), spec
    shown = done(rig, job)
    assert shown['device_type'] == 'gpu' and shown['attempt'] == 1, shown
    log = (rig.dir / 'alone/attempts/1/rank-0.log').read_text()
    assert 'backend=sim' in log, log

    # An Xid on rank 1's GPU after two steps, while a call into the driver hangs.
    job = submit(rig, 'moved')
    until('two steps', lambda: rig.show(job)['step'] >= 2)
    used = devices(rig)
    assert [used[u]['state'] for u in UUIDS] == ['USED', 'USED', 'FREE'] and used[UUIDS[1]]['job'] == job, used
    watch = rig.show(job)['gpus']
    assert [(g['rank'], g['device'], g['memory_total']) for g in watch] == [
        (0, UUIDS[0], 40960 << 20), (1, UUIDS[1], 40960 << 20)], watch
    world.play(f'event 1 {UUIDS[1]} xid 79', 'hang temperature')
    until('a fence', lambda: devices(rig)[UUIDS[1]]['state'] == 'FENCED', 20)
    world.play(f'event 1 {UUIDS[1]} xid 79', f'set {UUIDS[1]} lost 1')
    shown = done(rig, job)
    first = shown['attempts'][0]
    assert shown['attempt'] == 2 and first['state'] == 'NODE_FAIL', shown
    assert first['error'] == f'rank 1: {UUIDS[1]}: Xid 79: the GPU has fallen off the bus', first
    assert shown['attempts'][1]['resume_step'] >= 1, shown  # step 2 is told before it is saved
    for name in ('adapter_model.safetensors', 'checkpoint-8/state.safetensors'):
        assert (rig.dir / 'alone' / name).read_bytes() == (rig.dir / 'moved' / name).read_bytes(), name

    # The rank is dead and its record is there; then the driver says why.
    job = submit(rig, 'died')
    until('two steps', lambda: rig.show(job)['step'] >= 2)
    assert rig.show(job)['device_names'] == [UUIDS[0], UUIDS[2]], rig.show(job)
    kill(rig.gang(job, 1)['ranks'][1], signal.SIGABRT)
    until('its end', lambda: rig.show(job)['state'] == 'COMPLETING', 20)
    lost = [f'event 1 {UUIDS[1]} xid 79', f'set {UUIDS[1]} lost 1']
    world.play(*lost, f'event 2 {UUIDS[2]} ecc')
    first = until('a verdict', lambda: (lambda s: s['state'] == 'PENDING' and s['attempts'][0])(rig.show(job)), 20)
    assert first['state'] == 'NODE_FAIL' and first['error'].startswith(f'rank 1: {UUIDS[2]}: uncorrectable'), first
    assert devices(rig)[UUIDS[2]]['state'] == 'FENCED'
    rig.ctl('undrain', UUIDS[2])  # it was reset
    assert done(rig, job)['attempt'] == 2
    for name in ('adapter_model.safetensors', 'checkpoint-8/state.safetensors'):
        assert (rig.dir / 'alone' / name).read_bytes() == (rig.dir / 'died' / name).read_bytes(), name

    table = rig.ctl('devices').stdout
    assert 'Xid 79' in table and UUIDS[1] in table and '40.0 GiB' in table, table
    print(table, end='')

    # Two GPUs are left for a job that wants three: it could never run, or only after a reset.
    three = rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, 'devices=3', f'output_dir={rig.dir}/three')
    why = until('a reason', lambda: (lambda s: s['reason'] == 'DevicesFenced' and s)(rig.show(three)), 10)
    assert UUIDS[1] in why['reason_text'] and 'Xid 79' in why['reason_text'], why
    rig.ctl('cancel', three)
    print('ok')
finally:
    rig.close()
