"""kill_burst.py BUILD [BURSTS [KILLS [GAP_MS]]] - daemons killed so shortly after another
that the gang's line goes down and up between two looks at it. The last of each burst
hears the gang's hello."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, kill

SETS = ['max_steps=100000', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2',
        'max_length=64', 'eval={split_from_train: 8}', 'threads_per_device=1']
PATIENCE_S = 30  # a line that is dead and does not know it: 25 s, and a new connection


def start(rig):
    return subprocess.Popen([str(rig.build / 'daemon/alignd'), '--user', '--state', str(rig.state),
                             '--cpu-slots', '2'], env=rig.env, start_new_session=True)


def greeted(log):
    text = log.read_text(errors='replace')
    return 'gang_hello' in text[max(text.rfind('info  ready '), 0):] and 'info  ready ' in text


def main():
    bursts, kills, gap = (int(sys.argv[i]) if len(sys.argv) > i else n for i, n in ((2, 6), (3, 6), (4, 110)))
    rig = Rig(sys.argv[1])
    log = rig.state / 'alignd.log'
    daemon = start(rig)
    pids, worst = None, 0
    try:
        while rig.ctl('list', ok=False).returncode:
            time.sleep(0.05)
        job = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/run')
        while not rig.gang(job, 1):
            time.sleep(0.01)
        pids = rig.gang(job, 1)
        kill(pids['ranks'][1], signal.SIGSTOP)  # they do not meet: CONFIGURING all the time
        for _ in range(bursts):
            for _ in range(kills):
                daemon.kill()
                daemon.wait()
                daemon = start(rig)
                time.sleep(gap / 1000)
            began = time.monotonic()
            while not greeted(log):
                assert alive(pids['supervisor'])
                assert time.monotonic() - began < PATIENCE_S, 'the gang did not greet the last daemon'
                time.sleep(0.01)
            worst = max(worst, time.monotonic() - began)
        kill(pids['ranks'][1], signal.SIGCONT)
        rig.wait_state(job, {'RUNNING'})
        assert rig.show(job)['attempt'] == 1
        rig.ctl('cancel', job)
        assert rig.wait_state(job, {'CANCELLED', 'FAILED'}) == 'CANCELLED'
        print(f'{bursts} bursts of {kills} kills: greeted after {worst:.2f} s at most')
    finally:
        for rank in pids['ranks'] if pids else []:
            kill(rank, signal.SIGCONT)
        rig.close()
        daemon.wait(30)


main()
