"""gpu_memory.py BUILD - memory of simulated GPUs, told to people: `check` says what a rank will
hold; a job that cannot fit is refused before it is queued; one whose GPU has less than it said
ends OUT_OF_MEMORY, and show, wait and list say what would fit."""
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, Rig

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
UUID = 'GPU-63757369-6d2d-6465-7669-636530303000'
JOB = ROOT / 'tests/data/demo/job.yaml'
SETS = ['max_steps=1', 'save_steps=1', 'eval_steps=100000', 'train_batch_size=4', 'max_length=64', 'lora_r=4',
        'device_type=gpu', 'eval={split_from_train: 2}', 'devices=1', f'model_name_or_path={ROOT}/tests/data/tiny64']

rig = Rig(BUILD)
(rig.dir / 'play').write_text(f'gpu {UUID} Simulated 68\n')
rig.env.update(ALIGND_BACKEND='sim', CUSIM_DEVICES='1', CUSIM_DEVICE_MB='68', CUSIM_TAKEN_KB='1500',
               ALIGND_PLAYED_NVML=str(rig.dir / 'play'), LD_LIBRARY_PATH=str(BUILD / 'tests/nvml'))
for name in ('CUDA_VISIBLE_DEVICES', 'SLURM_JOB_ID'):
    rig.env.pop(name, None)


def sets(*more):
    return [x for s in (*SETS, *more) for x in ('--set', s)]


try:
    rig.up()
    out = rig.ctl('check', JOB, *sets()).stdout
    assert re.search(r'^memory per rank: [0-9.]+ MB of [0-9.]+ MB free: weights ', out, re.M), out
    print(out, end='')

    # More than there is, whatever is computed again.
    no = rig.ctl('submit', JOB, *sets('lora_r=4096', f'output_dir={rig.dir}/no'), ok=False)
    assert no.returncode == 1 and 'needs at least' in no.stderr and 'MiB free' in no.stderr, (no.returncode, no.stderr)
    assert json.loads(rig.ctl('list', '--json').stdout) == [], 'queued'

    # Somebody took most of it since the driver was asked.
    job = rig.submit(JOB, *SETS, f'output_dir={rig.dir}/tight')
    assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'OUT_OF_MEMORY'}) == 'OUT_OF_MEMORY', rig.show(job)
    shown = rig.show(job)
    error = shown['attempts'][0]['error']
    assert 'out of memory' in error and 'Planned were' in error, shown
    assert re.search(r'token_budget: \d+ would fit with \d of 2 layers', error), shown
    text = rig.ctl('show', job).stdout
    assert 'OUT_OF_MEMORY' in text and 'would fit' in text, text
    waited = rig.ctl('wait', job, ok=False)
    assert waited.returncode != 0 and 'OUT_OF_MEMORY' in waited.stdout + waited.stderr, (waited.returncode, waited)
    assert 'would fit' in waited.stdout + waited.stderr, waited
    print(text, end='')

    # Kernels' code that comes when it is first launched, and memory given out by the page: measured,
    # planned with, and as planned in the end.
    rig.env.update(CUSIM_CODE_KB='100', CUSIM_PAGE_KB='64', CUSIM_DEVICE_MB='144', CUSIM_TAKEN_KB='0')
    done = rig.worker('run', JOB, *sets(f'output_dir={rig.dir}/measured'), env=rig.env)
    log = (rig.dir / 'measured/attempts/1/rank-0.log').read_text()
    kernels = re.search(r'memory [0-9.]+ MB of .* kernels ([0-9.]+) MB', log)
    held = re.search(r'memory held=([0-9.]+)MB planned=([0-9.]+)MB', log)
    assert done.returncode == 0 and kernels and held, (done, log)
    assert float(kernels[1]) > 1 and 0.9 * float(held[2]) < float(held[1]) <= float(held[2]), log
    assert re.search(r'start seconds=[0-9.]+ device=[0-9.]+ .* weights=[0-9.]+ first_step=[0-9.]+', log), log
    print(kernels[0], held[0], sep='\n')
    print('ok')
finally:
    rig.close()
