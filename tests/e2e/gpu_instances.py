"""gpu_instances.py BUILD - a GPU that is split into MIG instances, simulated: each is a device with a
UUID of its own, and a rank sees that one alone; two ranks on two instances train together through
their hosts (NCCL does not join instances), to the bytes of two whole GPUs; what breaks the GPU fences
both."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, Rig, until

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
GPUS = [f'GPU-63757369-6d2d-6465-7669-63653030{d}00' for d in ('30', '31', '32')]
PARTS = [f'MIG-a5f2c1d0-9b1e-5e7c-8d0a-00000000000{i}' for i in (1, 2)]
SETS = ['max_steps=4', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2', 'max_length=48', 'lora_r=4',
        'device_type=gpu', 'eval={split_from_train: 2}', 'devices=2', f'model_name_or_path={ROOT}/tests/data/tiny64']

rig = Rig(BUILD)
play = rig.dir / 'play'
WORLD = ''.join(f'gpu {u} Simulated 40960\n' for u in GPUS)
SPLIT = WORLD + f'set {GPUS[0]} mig 1\n' + ''.join(f'mig {GPUS[0]} {u} Simulated_MIG_1g.10gb 9856\n' for u in PARTS)
play.write_text(WORLD)
rig.env.update(ALIGND_BACKEND='sim', CUSIM_DEVICES='3', ALIGND_PLAYED_NVML=str(play),
               LD_LIBRARY_PATH=str(BUILD / 'tests/nvml'))
rig.env.pop('CUDA_VISIBLE_DEVICES', None)
rig.env.pop('SLURM_JOB_ID', None)


def devices():
    return {d['device']: d for d in json.loads(rig.ctl('devices', '--json').stdout)}


def run(name):
    job = rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, f'output_dir={rig.dir}/{name}')
    names = until('a rank', lambda: rig.show(job)['device_names'])
    assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'NODE_FAIL'}, 120) == 'COMPLETED', rig.show(job)
    return names, (rig.dir / name / 'attempts/1/rank-0.log').read_text()


try:
    rig.up()
    names, log = run('whole')
    assert names == GPUS[:2] and 'sums=nccl' in log, (names, log)

    part = play.with_suffix('.part')
    part.write_text(SPLIT)
    part.replace(play)
    until('the instances', lambda: PARTS[1] in devices() and devices()[GPUS[0]]['state'] == 'GONE', 20)
    table = rig.ctl('devices').stdout
    assert PARTS[0] in table and '9.6 GiB' in table, table
    names, log = run('parts')
    assert names == PARTS and 'sums=host' in log and f'gpu={PARTS[0]}' in log, (names, log)
    for name in ('adapter_model.safetensors',):
        assert (rig.dir / 'whole' / name).read_bytes() == (rig.dir / 'parts' / name).read_bytes(), name

    part.write_text(SPLIT + f'event 1 {GPUS[0]} xid 95\n')
    part.replace(play)
    until('two fences', lambda: [devices()[u]['state'] for u in PARTS] == ['FENCED'] * 2, 20)
    assert devices()[GPUS[1]]['state'] == 'FREE', devices()
    print(table, end='')
    print('ok')
finally:
    rig.close()
