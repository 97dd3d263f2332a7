"""gpu_container.py BUILD - alignd in a container, whose process numbers are not the driver's: a GPU
whose memory is in use is somebody's although nobody is listed; a number that means somebody else
here does not take a GPU from a gang that trains on it."""
import json
import os
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
if len(sys.argv) < 3:  # once more, in a namespace of processes of its own
    again = ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child']
    again += [] if os.geteuid() == 0 else ['--user', '--map-root-user']
    try:
        able = subprocess.run([*again, 'true'], capture_output=True).returncode == 0
    except OSError:
        able = False
    if not able:
        print('skipped: no namespace of processes can be made here')
        sys.exit(77)
    sys.exit(subprocess.run([*again, sys.executable, __file__, str(BUILD), 'inside']).returncode)

UUIDS = [f'GPU-63757369-6d2d-6465-7669-63653030{d}00' for d in ('30', '31')]
SETS = ['max_steps=100000', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2', 'max_length=48',
        'lora_r=4', 'device_type=gpu', 'eval={split_from_train: 2}', f'model_name_or_path={ROOT}/tests/data/tiny64']
WORLD = ''.join(f'gpu {u} Simulated 40960\n' for u in UUIDS)

rig = Rig(BUILD)
play = rig.dir / 'play'


def world(*more):
    part = play.with_suffix('.part')
    part.write_text(WORLD + '\n'.join(more) + '\n')
    part.replace(play)


def device(i):
    return {d['device']: d for d in json.loads(rig.ctl('devices', '--json').stdout)}[UUIDS[i]]


world(f'set {UUIDS[1]} used 2000')  # the driver's own
rig.env.update(ALIGND_BACKEND='sim', CUSIM_DEVICES='2', ALIGND_PLAYED_NVML=str(play),
               LD_LIBRARY_PATH=str(BUILD / 'tests/nvml'))
rig.env.pop('CUDA_VISIBLE_DEVICES', None)
rig.env.pop('SLURM_JOB_ID', None)
try:
    rig.up()
    job = rig.submit(ROOT / 'tests/data/demo/job.yaml', *SETS, 'devices=1', f'output_dir={rig.dir}/run')
    until('a step', lambda: rig.show(job)['step'] >= 1)
    # Its rank, by a number that is this test's here.
    world(f'process {UUIDS[0]} {os.getpid()} 9000', f'set {UUIDS[0]} used 9000', f'set {UUIDS[1]} used 30000')
    until('FOREIGN', lambda: device(1)['state'] == 'FOREIGN', 20)
    assert device(1)['reason'] == 'a program that this container does not show, 29.3 GiB', device(1)
    time.sleep(5)  # two more looks
    assert device(0)['state'] == 'USED' and device(0)['reason'] == '', device(0)
    world()
    rig.ctl('cancel', job)
    until('its end', lambda: device(0)['state'] == 'FREE', 20)
    until('the other one', lambda: 'until a moment ago' in device(1)['reason'], 20)
    print('ok')
finally:
    rig.close()
