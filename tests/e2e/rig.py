"""rig.py - a private alignd in a temporary folder, for the end-to-end tests.

Python's standard library only. Processes are ended by the numbers that alignd
and its gangs wrote down, never by name."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / 'tests/data/demo'


class Rig:
    def __init__(self, build, slots=2):
        self.build = Path(build).resolve()
        self.dir = Path(tempfile.mkdtemp(prefix='alignd-e2e-', dir='/tmp'))
        self.state = self.dir / 's'
        self.slots = slots
        self.pid = 0
        # Device locks of its own: what else runs on this machine is not in the way.
        self.state.mkdir(mode=0o700)
        (self.state / 'alignd.json').write_text(json.dumps({'devices_dir': f'{self.dir}/d'}))
        self.env = dict(os.environ, ALIGND_STATE=str(self.state), TERM='dumb')
        self.env.pop('ALIGND_HOST', None)

    def ctl(self, *args, ok=True, timeout=120):
        done = subprocess.run([str(self.build / 'client/alignctl'), *map(str, args)], env=self.env,
                              capture_output=True, text=True, timeout=timeout)
        if ok and done.returncode != 0:
            raise AssertionError(f'alignctl {args}: {done.returncode}\n{done.stdout}{done.stderr}')
        return done

    def ctl_later(self, *args):
        """Started, not waited for."""
        return subprocess.Popen([str(self.build / 'client/alignctl'), *map(str, args)], env=self.env,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def worker(self, *args, timeout=300, **more):
        return subprocess.run([str(self.build / 'worker/align-worker'), *map(str, args)],
                              capture_output=True, text=True, timeout=timeout, **more)

    def up(self):
        out = self.ctl('up', '--cpu-slots', self.slots).stdout
        self.pid = int(out.split('process')[1].split()[0])
        return self.pid

    def kill_daemon(self):
        os.kill(self.pid, signal.SIGKILL)
        while running(self.pid):  # until it is dead it holds the lock of its folder
            time.sleep(0.001)

    def close(self):
        """Ends the daemon and every gang of it."""
        self.ctl('down', ok=False)
        for pids in self.state.glob('gangs/*/pids.json'):
            kill_gang(json.loads(pids.read_text()))
        shutil.rmtree(self.dir, ignore_errors=True)

    def submit(self, job, *sets):
        args = ['submit', str(job)]
        for s in sets:
            args += ['--set', s]
        return int(self.ctl(*args).stdout.split()[-1])

    def show(self, job):
        return json.loads(self.ctl('show', job, '--json').stdout)

    def state_of(self, job):
        return self.show(job)['state']

    def wait_state(self, job, states, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            state = self.state_of(job)
            if state in states:
                return state
            time.sleep(0.1)
        raise AssertionError(f'job {job} is {state} after {timeout} s, not one of {states}')

    def gang(self, job, attempt):
        """pids.json of a gang once all its ranks run, or None."""
        for folder in self.state.glob(f'gangs/alignd-*-{job}-{attempt}'):
            try:
                pids = json.loads((folder / 'pids.json').read_text())
            except (OSError, ValueError):
                return None
            return pids if pids['ranks'] else None
        return None

    def metrics(self, job, *more):
        out = self.ctl('metrics', job, '--json', *more).stdout
        return [json.loads(line) for line in out.splitlines()]


def stat_of(pid):
    """Fields 3.. of /proc/PID/stat of a process that is not dead, or None."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return None
    return None if fields[0] in 'ZX' else fields


def running(pid):
    return stat_of(pid) is not None


def alive(process):
    """Whether the process of a pids.json entry is still that process."""
    fields = stat_of(process['pid'])
    return fields is not None and int(fields[19]) == process['start']


def kill(process, number=signal.SIGKILL):
    if not alive(process):
        return False
    try:
        os.kill(process['pid'], number)
    except ProcessLookupError:
        return False
    return True


def kill_gang(pids):
    for process in [pids['supervisor'], *pids['ranks']]:
        kill(process)


def until(what, true, timeout=60):
    """Waits for it and returns what it is."""
    end = time.monotonic() + timeout
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < end, f'{what}: not within {timeout} s'
        time.sleep(0.02)


TIMINGS = {'wall_ms', 'seq', 'n', 'attempt', 'step_seconds', 'samples_per_second', 'tokens_per_second',
           'eval_runtime', 'eval_samples_per_second', 'eval_steps_per_second', 'train_runtime',
           'train_samples_per_second', 'train_steps_per_second'}


def comparable(rows):
    """The rows of training and evaluation without what a clock or an attempt says."""
    return [{k: v for k, v in row.items() if k not in TIMINGS}
            for row in rows if row.get('kind') in ('train', 'eval')]
