"""network_state.py BUILD STATFS - a state folder on a network file system, as statfs says
(STATFS is loaded before libc): an owner-checked folder under /tmp serves, alignd and alignctl
say so, a job runs there, and a folder that is not ours is refused."""
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig

NAMES = {'NFS': 0x6969, 'SMB': 0xff534d42, 'FUSE': 0x65735546, 'Lustre': 0x0bd00bd0, 'Ceph': 0x00c36400,
         '9P': 0x01021997, 'GPFS': 0x47504653, 'BeeGFS': 0x19830326, 'AFS': 0x5346414f}
SETS = ['max_steps=2', 'save_steps=2', 'eval_steps=2', 'train_batch_size=2', 'max_length=64',
        'eval={split_from_train: 8}', 'threads_per_device=1']


class Shared(Rig):
    """Its state folder is on a network file system, or so it seems."""

    def __init__(self, build, statfs):
        super().__init__(build)
        preload = [x for x in os.environ.get('LD_PRELOAD', '').split() if x]
        self.env.update(LD_PRELOAD=' '.join([*preload, str(Path(statfs).resolve())]), NETWORK_DIR=str(self.state),
                        NETWORK_MAGIC=hex(NAMES['Lustre']))
        digest = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        self.local = Path(f'/tmp/alignd-{os.geteuid()}-{digest}')

    def alignd(self, **env):
        return subprocess.Popen([str(self.build / 'daemon/alignd'), '--user', '--foreground', '--state',
                                 str(self.state)], env={**self.env, **env}, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def refused(self, *words, **env):
        process = self.alignd(**env)
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 1 and all(w in said for w in words), (process.returncode, said)


def names(rig):
    for name, magic in NAMES.items():
        process = rig.alignd(NETWORK_MAGIC=hex(magic))
        end = time.monotonic() + 20
        while not (rig.local / 'control.sock').exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
        assert f'is on {name}, which keeps no locks and sockets: {rig.local} is used instead' in said, said
        assert process.returncode == 0
    print(f'{len(NAMES)} kinds of network file systems are known by name')


def job(rig):
    up = rig.ctl('up', '--cpu-slots', 2)
    assert f'{rig.local} is used instead' in up.stderr, up.stderr
    assert stat.S_IMODE(rig.local.lstat().st_mode) == 0o700
    assert {p.name for p in rig.local.iterdir()} >= {'alignd.db', 'alignd.lock', 'control.sock', 'gangs'}
    assert not (rig.state / 'alignd.db').exists() and not (rig.state / 'gangs').exists()
    for name in ('control.sock', 'watch.sock', 'worker.sock'):
        assert os.readlink(rig.state / name) == str(rig.local / name)
    rig.refused('serves', str(rig.local), 'already')  # a second one finds the lock
    n = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/run')
    assert rig.wait_state(n, {'COMPLETED', 'FAILED'}) == 'COMPLETED', rig.show(n)
    (rig.state / 'control.sock').unlink()  # as it looks from another machine
    assert rig.state_of(n) == 'COMPLETED'
    rig.ctl('down')
    rig.ctl('up')
    assert rig.state_of(n) == 'COMPLETED', 'another folder after a restart'
    rig.ctl('down')
    print('a job ran, and was there after a restart')


def refusals(rig):
    kept = rig.dir / 'kept'
    rig.local.rename(kept)
    rig.local.symlink_to(kept)
    rig.refused(str(rig.local), 'is not a folder')
    rig.local.unlink()
    rig.local.write_text('')
    rig.refused(str(rig.local), 'is not a folder')
    rig.local.unlink()
    if os.geteuid() == 0:
        rig.local.mkdir(mode=0o700)
        os.chown(rig.local, 12345, 12345)
        rig.refused(str(rig.local), 'belongs to another user')
        assert rig.local.lstat().st_uid == 12345 and not list(rig.local.iterdir())
        rig.local.rmdir()
    rig.refused('so is /tmp', 'local folder with --state', NETWORK_DIR='/tmp')
    kept.rename(rig.local)
    rig.local.chmod(0o755)  # ours, but open: closed at the start
    rig.ctl('up')
    assert stat.S_IMODE(rig.local.lstat().st_mode) == 0o700
    print('a link, a file and another user\'s folder are refused; /tmp may not be remote too')


def main():
    rig = Shared(*sys.argv[1:3])
    try:
        for test in (names, job, refusals):
            test(rig)
    finally:
        rig.close()
        if not rig.local.is_symlink():
            shutil.rmtree(rig.local, ignore_errors=True)


main()
