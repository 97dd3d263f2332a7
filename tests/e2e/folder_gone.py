"""folder_gone.py BUILD - what a logout does, in mid-training: the runtime folder with the
control socket vanishes, the other sockets too, and everybody hears SIGHUP. The gang trains
on, clients find the daemon again, no row is missing. SIGHUP takes over the settings that
may change and refuses another by name; what gangs write has the user's umask, with a
daemon and without; and a database that is deleted ends the daemon instead of lying."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig, alive, kill, running

SETS = ['method=dpo', 'max_steps=100000', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2',
        'max_length=64', 'eval={split_from_train: 8}', 'threads_per_device=1', 'devices=2']
UMASK = 0o027


def until(what, true, timeout=60):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f'{what}: not within {timeout} s'
        time.sleep(0.02)


class Away(Rig):
    """Its control socket lies in a runtime folder of its own."""

    def __init__(self, build):
        super().__init__(build)
        self.runtime = self.dir / 'run'
        self.runtime.mkdir(mode=0o700)
        self.env.update(XDG_RUNTIME_DIR=str(self.runtime), ALIGND_HOST=f'ipc://{self.runtime}/alignd.sock')
        self.log = self.state / 'alignd.log'

    def start(self):
        self.daemon = subprocess.Popen(
            [str(self.build / 'daemon/alignd'), '--user', '--state', str(self.state), '--cpu-slots', '2',
             '--host', self.env['ALIGND_HOST']], env=self.env, umask=UMASK, start_new_session=True)
        self.pid = self.daemon.pid
        until('the daemon', lambda: self.ctl('list', ok=False).returncode == 0)

    def settings(self, **more):
        (self.state / 'alignd.json').write_text(json.dumps({'devices_dir': f'{self.dir}/d', **more}))
        before = len(self.log.read_text())
        os.kill(self.pid, signal.SIGHUP)
        said = lambda: [x for x in self.log.read_text()[before:].splitlines() if 'reload' in x]
        until('an answer to SIGHUP', said, 10)
        return said()[-1]


def steps(rig, run, attempt=1):
    try:
        return (rig.dir / run / f'attempts/{attempt}/metrics.jsonl').read_text().count('\n')
    except OSError:
        return 0


def logout(rig):
    job = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/a')
    until('steps', lambda: steps(rig, 'a') > 5)
    pids = rig.gang(job, 1)
    inodes = {s: s.stat().st_ino for s in (rig.state / 'watch.sock', rig.state / 'worker.sock')}
    shutil.rmtree(rig.runtime)
    for sock in inodes:
        sock.unlink()
    for process in [pids['supervisor'], *pids['ranks']]:
        assert kill(process, signal.SIGHUP)
    gone = time.monotonic()
    said = rig.settings(log_level='debug', operators=[12345])
    assert 'operators=1' in said and 'refused' not in said, said
    sock = rig.runtime / 'alignd.sock'
    until('the sockets', lambda: sock.exists() and all(s.exists() for s in inodes), 5)
    took = time.monotonic() - gone
    assert rig.runtime.stat().st_mode & 0o777 == 0o700 and sock.stat().st_mode & 0o777 == 0o600
    at = steps(rig, 'a')
    assert rig.state_of(job) == 'RUNNING' and rig.gang(job, 1) == pids
    assert all(map(alive, [pids['supervisor'], *pids['ranks']]))
    until('more steps', lambda: steps(rig, 'a') > at + 20)
    late = rig.ctl_later('metrics', job, '--follow', '--json')
    rig.ctl('cancel', job)
    seen = [json.loads(x) for x in late.communicate(timeout=60)[0].splitlines()]
    assert rig.wait_state(job, {'CANCELLED', 'FAILED'}) == 'CANCELLED', rig.show(job)
    assert rig.show(job)['attempt'] == 1
    wrote = [json.loads(x)['n'] for x in (rig.dir / 'a/attempts/1/metrics.jsonl').read_text().splitlines()]
    assert wrote == list(range(1, len(wrote) + 1)) and len(wrote) > at
    for rows in (rig.metrics(job, '--all'), seen):
        assert [row['n'] for row in rows] == wrote, 'a row is missing or doubled'
    print(f'folder and sockets back after {took:.1f} s; {len(wrote)} rows, attempt 1')


def reload(rig):
    for key, value in (('cpu_slots', 7), ('worker', '/bin/true'), ('devices_dir', f'{rig.dir}/other')):
        said = rig.settings(**{'log_level': 'error', 'operators': [], key: value})
        assert 'refused' in said and f'{key} cannot change' in said, said
    said = rig.settings(log_level='info', bogus=1)
    assert 'refused' in said and 'bogus' in said and 'unknown' in said, said
    said = rig.settings(log_level='info')  # what was refused left nothing behind
    assert 'refused' not in said and 'operators=0' in said, said
    print('SIGHUP: two keys change, others are refused by name')


def modes(folder):
    return {str(p.relative_to(folder)): oct(p.lstat().st_mode & 0o777)
            for p in sorted(folder.rglob('*')) if not p.is_symlink() and '.gang' not in p.parts}


def umasks(rig):
    """The same modes through a daemon (rank logs, checkpoints, result) and without one."""
    done = rig.worker('run', DEMO / 'job.yaml', *[x for s in SETS for x in ('--set', s)],
                      '--set', 'max_steps=4', '--set', 'save_steps=2', '--set', 'eval_steps=4',
                      '--set', f'output_dir={rig.dir}/b', umask=UMASK)
    assert done.returncode == 0, done.stderr
    a, b = modes(rig.dir / 'a'), modes(rig.dir / 'b')
    assert {a[f] for f in a if (rig.dir / 'a' / f).is_dir()} == {'0o750'}, a
    assert {a[f] for f in a if (rig.dir / 'a' / f).is_file()} == {'0o640'}, a
    assert set(a.values()) == set(b.values()) and a['adapter_model.safetensors'] == b['adapter_model.safetensors']
    for private in (rig.state, rig.state / 'gangs', rig.runtime):
        assert private.stat().st_mode & 0o777 == 0o700, private
    private = {oct(p.stat().st_mode & 0o077) for p in rig.state.glob('alignd.*') if p.suffix != '.json'}
    assert private == {'0o0'}, private
    print(f'{len(a)} files and folders of a run follow the umask, {len(b)} without a daemon')


def database_gone(rig):
    for name in ('alignd.db', 'alignd.db-wal', 'alignd.db-shm'):
        (rig.state / name).unlink(missing_ok=True)
    assert rig.daemon.wait(10) == 70
    assert 'store_gone' in rig.log.read_text()
    print('the database deleted: exit code 70, and the log says why')


def main():
    rig = Away(sys.argv[1])
    began = time.monotonic()
    try:
        rig.start()
        for test in (logout, reload, umasks, database_gone):
            test(rig)
        print(f'{time.monotonic() - began:.0f} s')
    finally:
        if running(rig.pid):
            os.kill(rig.pid, signal.SIGTERM)
            rig.daemon.wait(30)
        rig.close()


main()
