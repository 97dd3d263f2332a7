"""unsent.py BUILD - reports that nobody could hear are not lost: alignd is away while a
gang trains on, the gang is killed whole, and a new supervisor sends the rest of the
dead one's spool before its own rows. Then a gang that outlasts an absence by itself,
and kills while ranks meet."""
import fcntl
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, comparable, kill_gang

SETS = ['method=dpo', 'max_steps=40', 'save_steps=4', 'eval_steps=10', 'train_batch_size=4',
        'max_length=128', 'eval={split_from_train: 16}', 'threads_per_device=1']


def spool(rig, run, attempt):
    try:
        text = (rig.dir / run / f'attempts/{attempt}/metrics.jsonl').read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith('}')]


def until(what, timeout=120):
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, f'not within {timeout} s'
        time.sleep(0.02)


def start(rig, run):
    return rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/{run}')


def finish(rig, job):
    assert rig.wait_state(job, {'COMPLETED', 'FAILED', 'NODE_FAIL'}) == 'COMPLETED', rig.show(job)


def lost_with_its_reports(rig, calm):
    job = start(rig, 'lost')
    until(lambda: len(spool(rig, 'lost', 1)) >= 4)
    rig.kill_daemon()
    heard = len(spool(rig, 'lost', 1))
    until(lambda: len(spool(rig, 'lost', 1)) >= heard + 10)
    pids = rig.gang(job, 1)
    kill_gang(pids)
    until(lambda: not any(map(alive, [pids['supervisor'], *pids['ranks']])))
    rig.up()
    finish(rig, job)
    show = rig.show(job)
    assert show['attempt'] == 2, show
    assert comparable(rig.metrics(job)) == comparable(rig.metrics(calm)), 'live rows differ'
    rows = [r for r in rig.metrics(job, '--all') if r['attempt'] == 1 and r['kind'] != 'rewind']
    assert [r['n'] for r in rows] == [r['n'] for r in spool(rig, 'lost', 1)], 'not all was sent'
    back = spool(rig, 'lost', 2)[0]['global_step']
    for r in rows:
        assert bool(r.get('superseded')) == (r['global_step'] > back), r
    return len(rows) - heard


def away(rig, calm):
    """Longer than the line's own patience."""
    job = start(rig, 'away')
    until(lambda: len(spool(rig, 'away', 1)) >= 2)
    rig.kill_daemon()
    time.sleep(18)
    rig.up()
    finish(rig, job)
    assert rig.show(job)['attempt'] == 1
    assert comparable(rig.metrics(job)) == comparable(rig.metrics(calm))


def meeting(rig, calm, n):
    """A kill as soon as a rank has left a value for the others."""
    job = start(rig, f'meet-{n}')
    until(lambda: rig.gang(job, 1))
    time.sleep(0.02 * n)
    rig.kill_daemon()
    rig.up()
    finish(rig, job)
    assert rig.show(job)['attempt'] == 1
    assert len(rig.metrics(job)) == len(rig.metrics(calm))


def cancelled_before_it_started(rig):
    """Another program took the device before alignd saw it: the start waits for the lock."""
    lock = os.open(rig.dir / 'd/cpu:0.lock', os.O_RDONLY | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    job = start(rig, 'never')
    assert rig.wait_state(job, {'CONFIGURING', 'PENDING'}) and not rig.gang(job, 1)
    began = time.monotonic()
    rig.ctl('cancel', job)
    assert rig.wait_state(job, {'CANCELLED', 'FAILED'}) == 'CANCELLED', rig.show(job)
    assert time.monotonic() - began < 5
    os.close(lock)


def main():
    rig = Rig(sys.argv[1])
    began = time.monotonic()
    try:
        rig.up()
        calm = start(rig, 'calm')
        finish(rig, calm)
        cancelled_before_it_started(rig)
        late = lost_with_its_reports(rig, calm)
        away(rig, calm)
        for n in range(4):
            meeting(rig, calm, n)
        print(f'{late} reports sent by the next attempt; an absence of 18 s; 4 kills while ranks met; '
              f'{time.monotonic() - began:.0f} s')
    finally:
        rig.close()


main()
