"""kill_submit.py BUILD [KILLS [SEED]] - kill -9 of alignd in the middle of submits, by
clients that ask again with the same key until they are answered. Every answer is a job
of the queue, every job is an answer, none is there twice."""
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig

CLIENTS = 4


class Client(threading.Thread):
    """Submits held jobs one after the other; each until it is answered."""

    def __init__(self, rig, number, stop):
        super().__init__(daemon=True)
        self.rig, self.number, self.stop = rig, number, stop
        self.answers, self.tries, self.error = {}, 0, None

    def one(self, n):
        name = f'c{self.number}-{n}'
        key = os.urandom(16).hex()
        args = [str(self.rig.build / 'client/alignctl'), 'submit', str(DEMO / 'job.yaml'),
                '--parsable', '--no-check', '--hold', '--key', key, '--set', f'name={name}', '--set',
                f'output_dir={self.rig.dir}/runs/{{name}}-{{id}}']
        while True:
            self.tries += 1
            done = subprocess.run(args, env=self.rig.env, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                self.answers[name] = int(done.stdout.split()[-1])
                return
            if done.returncode != 5:  # not "unreachable"
                raise AssertionError(f'submit: {done.returncode} {done.stdout}{done.stderr}')
            time.sleep(0.01)

    def run(self):
        try:
            n = 0
            while not self.stop.is_set():
                n += 1
                self.one(n)
        except Exception as e:
            self.error = e


def main():
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    print(f'seed {seed}')
    rng = random.Random(seed)
    rig = Rig(sys.argv[1])
    stop = threading.Event()
    clients = [Client(rig, i, stop) for i in range(CLIENTS)]
    began = time.monotonic()
    try:
        rig.up()
        for c in clients:
            c.start()
        for _ in range(kills):
            time.sleep(rng.random() * 0.25)
            rig.kill_daemon()
            rig.up()
            assert not any(c.error for c in clients), [c.error for c in clients]
        stop.set()
        for c in clients:
            c.join(120)
            assert not c.is_alive() and not c.error, c.error
        check(rig, clients)
        print(f'{kills} kills, {sum(len(c.answers) for c in clients)} jobs acknowledged in '
              f'{sum(c.tries for c in clients)} tries: each there once; {time.monotonic() - began:.0f} s')
    finally:
        stop.set()
        rig.close()


def check(rig, clients):
    answered = {}
    for c in clients:
        answered.update(c.answers)
    jobs = json.loads(rig.ctl('list', '--all', '--json').stdout)
    there = [(j['name'], j['job']) for j in jobs]
    assert len(answered) >= 20, f'only {len(answered)} submits'
    assert len(set(answered.values())) == len(answered), 'a job number was given twice'
    assert sorted(there) == sorted(answered.items()), 'acknowledged and stored jobs differ'
    assert all(j['state'] == 'PENDING' and j['reason'] == 'JobHeldUser' for j in jobs), jobs[:3]


main()
