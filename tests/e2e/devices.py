"""devices.py BUILD - what jobs and devices say of each other: two daemons over one folder of
device locks (USED, FOREIGN), an operator's drain, and, where a process can be made that
SIGKILL does not end (a freezer of control groups), a fenced device."""
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, kill, until

SETS = ['save_steps=100000', 'eval_steps=100000', 'train_batch_size=2', 'max_length=64',
        'eval={split_from_train: 8}', 'threads_per_device=1']
FREEZER = Path('/sys/fs/cgroup/freezer')


def submit(rig, name, steps, devices=2):
    return rig.submit(DEMO / 'job.yaml', *SETS, f'max_steps={steps}', f'devices={devices}',
                      f'output_dir={rig.dir}/{name}')


def states(rig):
    return [(d['state'], d['job']) for d in json.loads(rig.ctl('devices', '--json').stdout)]


def waits(rig, job, reason, words):
    """The job waits for that reason, and says so in words."""
    # Another alignd's gang takes its locks one by one; what is seen between two is mended within 5 s.
    show = until(f'{reason}: {words}',
                 lambda: (lambda s: s['reason'] == reason and words in s['reason_text'] and s)(rig.show(job)), 10)
    assert show['state'] == 'PENDING', show
    listed = rig.ctl('list').stdout
    assert reason in listed, listed


def ends(rig, job, state, attempt=None):
    got = rig.wait_state(job, {'COMPLETED', 'FAILED', 'CANCELLED', 'NODE_FAIL'})
    show = rig.show(job)
    assert got == state and attempt in (None, show['attempt']), show


def drained(a):
    a.ctl('drain', 'cpu:0')
    assert states(a) == [('DRAINED', 0), ('FREE', 0)]
    both = submit(a, 'both', 2)
    waits(a, both, 'DevicesDrained', '1 free, 0 in use, 0 foreign, 0 fenced, 1 drained')
    one = submit(a, 'one', 2, devices=1)  # one that can run does not wait behind one that cannot
    ends(a, one, 'COMPLETED', 1)
    a.kill_daemon()
    a.up()
    assert states(a)[0] == ('DRAINED', 0), 'forgotten by a restart'
    # The supervisor of `one` may still be leaving, with its device's lock: ours, not another's.
    assert states(a) == [('DRAINED', 0), ('FREE', 0)], states(a)
    waits(a, both, 'DevicesDrained', '1 drained')
    assert a.ctl('drain', 'cpu:9', ok=False).returncode == 3
    a.ctl('undrain', 'cpu:0')
    ends(a, both, 'COMPLETED', 1)
    print('drained: what cannot run waits and says why, what can run runs, undrain lets it go')


def foreign(a, b):
    """b's job comes in the very moment a takes the devices, before b can know."""
    long = submit(a, 'long', 100000)
    until('a has the devices', lambda: states(a) == [('USED', long)] * 2)
    until('gang', lambda: a.gang(long, 1))
    late = submit(b, 'late', 2)
    waits(b, late, 'DevicesForeign', '0 free, 0 in use, 2 foreign')
    assert states(b) == [('FOREIGN', 0)] * 2
    early = submit(a, 'early', 2)
    waits(a, early, 'Resources', '0 free, 2 in use')
    a.ctl('cancel', early)
    time.sleep(3)
    waits(b, late, 'DevicesForeign', '2 foreign')
    a.ctl('cancel', long)
    ends(b, late, 'COMPLETED')
    until('free again', lambda: states(a) == states(b) == [('FREE', 0)] * 2)
    print(f'foreign: waited for the other alignd, ran as attempt {b.show(late)["attempt"]}')


class Frozen:
    """A process that does not die, as one that hangs in the kernel."""

    def __init__(self, pid):
        self.dir = FREEZER / f'alignd-test-{os.getpid()}'
        self.dir.mkdir()
        (self.dir / 'cgroup.procs').write_text(str(pid))
        (self.dir / 'freezer.state').write_text('FROZEN')

    def thaw(self):
        (self.dir / 'freezer.state').write_text('THAWED')
        for _ in range(200):
            try:
                self.dir.rmdir()
                return
            except OSError:
                time.sleep(0.05)


def fenced(a, b):
    job = submit(a, 'hangs', 100000)
    pids = until('gang', lambda: a.gang(job, 1))
    until('steps', lambda: a.show(job)['step'] > 2)
    frozen = Frozen(pids['ranks'][0]['pid'])
    try:
        a.ctl('cancel', job, '--now', '--no-wait')
        until('the supervisor to die', lambda: not alive(pids['supervisor']), 10)
        waiting = submit(a, 'waiting', 2)
        waits(a, waiting, 'Resources', '2 in use')
        until('FENCED', lambda: states(a) == [('FENCED', job)] * 2, 30)
        waits(a, waiting, 'DevicesFenced', '0 free, 0 in use, 0 foreign, 2 fenced')
        assert 'FENCED' in a.ctl('devices').stdout
        assert a.state_of(job) == 'COMPLETING' and alive(pids['ranks'][0])
        show = a.show(job)
        assert show['reason'] == 'DevicesFenced' and 'cannot be killed' in show['reason_text'], show
        assert 'cannot be killed' in a.ctl('list').stdout, a.ctl('list').stdout
        until('foreign to the other', lambda: states(b) == [('FOREIGN', 0)] * 2, 10)
        a.kill_daemon()
        a.up()
        assert states(a) == [('FENCED', job)] * 2, 'forgotten by a restart'
        waits(a, waiting, 'DevicesFenced', '2 fenced')
    finally:
        frozen.thaw()
    ends(a, job, 'CANCELLED', 1)
    ends(a, waiting, 'COMPLETED', 1)
    assert states(a) == [('FREE', 0)] * 2
    print('fenced: by a process that SIGKILL did not end; free when it was gone')


def main():
    a, b = Rig(sys.argv[1]), Rig(sys.argv[1])
    (b.state / 'alignd.json').write_text(json.dumps({'devices_dir': f'{a.dir}/d'}))
    began = time.monotonic()
    try:
        a.up()
        drained(a)
        b.up()
        foreign(a, b)
        try:
            (FREEZER / f'alignd-look-{os.getpid()}').mkdir()
            (FREEZER / f'alignd-look-{os.getpid()}').rmdir()
        except OSError as e:
            print(f'fenced: skipped, no freezer of control groups to write to ({e})')
        else:
            fenced(a, b)
        print(f'{time.monotonic() - began:.0f} s')
    finally:
        b.close()
        a.close()


main()
