"""slow_reader.py BUILD - peers that read one byte a second: rank output, a job's rows and
the queue, over connections of their own and through alignctl. The daemon answers others
as before and keeps its size; whoever is slow, or was cut off for not reading at all,
ends with every byte and every row."""
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rawwire import NUMBER, Client, unpack
from rig import DEMO, Rig

SLOW_S = 8  # more than the 5 s that a reply may wait for a peer
CROWD = 24
SMALL = 4096
BUSY = 1
CHUNK = 64 << 10
GROWTH_KB = 24 << 10
SETS = ['max_steps=100000', 'save_steps=100000', 'eval_steps=100000', 'train_batch_size=2',
        'max_length=64', 'eval={split_from_train: 8}', 'threads_per_device=1']


def until(what, true, timeout=60):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f'{what}: not within {timeout} s'
        time.sleep(0.02)


def rss_kb(pid):
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1])
    raise AssertionError('no VmRSS')


class Slow(threading.Thread):
    """Runs `body` and keeps what went wrong for the main thread."""

    def __init__(self, body):
        super().__init__(daemon=True)
        self.body, self.error, self.result = body, None, None
        self.start()

    def run(self):
        try:
            self.result = self.body()
        except Exception as e:  # the main thread raises it
            self.error = e

    def end(self, timeout=60):
        self.join(timeout)
        assert not self.is_alive(), 'a reader did not come to its end'
        if self.error:
            raise self.error
        return self.result


def read_log(path, job, rank, want, slow, depth):
    """The log by pages, `depth` of them asked for at once; (bytes, times cut off)."""
    log, cuts, client = b'', 0, None
    began = time.monotonic()
    while len(log) < want:
        try:
            if not client:
                client = Client(path, SMALL)
            client.rate = 1 if slow and time.monotonic() - began < SLOW_S else None
            asked = [client.ask('logs', job=job, attempt=1, rank=rank, offset=len(log) + i * CHUNK)
                     for i in range(depth)]
            replies = {}
            stop = None
            if client.rate:
                stop = threading.Timer(SLOW_S, setattr, (client, 'rate', None))
                stop.start()
            while len(replies) < depth:
                number, body = client.receive()
                replies[number] = body
            for number in asked:
                page = unpack(replies[number])
                if page['t'] == NUMBER['error']:
                    assert page['code'] == BUSY, page
                elif page['offset'] == len(log):  # else one before it was short: asked again
                    log += page['bytes']
        except (ConnectionError, BrokenPipeError):
            cuts += 1
            client.close()
            client = None
    client.close()
    return log, cuts


def follow_rows(path, job, last_seq, depth):
    """Every row by watch_job, slow at first; seqs in order of arrival."""
    seqs, since, client = [], 0, Client(path, SMALL)
    client.rate = 1
    threading.Timer(SLOW_S, setattr, (client, 'rate', None)).start()
    for _ in range(depth - 1):  # what else a greedy watcher asks for
        client.ask('watch_queue', rev=0)
    while since < last_seq():
        try:
            news = client.call('watch_job', job=job, since=since)
        except (ConnectionError, BrokenPipeError):
            client.close()
            client = Client(path, SMALL)
            continue
        assert news['t'] != 1, news
        seqs += [row[0] for row in news['rows']]
        since = news['last']
    client.close()
    return seqs


def idle_crowd(control, watch, job):
    """Asks for as much as it may and reads next to nothing."""
    out = []
    for i in range(CROWD):
        client = Client(control if i % 2 else watch, SMALL)
        for _ in range(8 if i % 2 else 64):
            if i % 2:
                client.ask('logs', job=job, attempt=1, rank=1, offset=0)
            else:
                client.ask('watch_log', job=job, attempt=1, rank=1, offset=0)
        client.rate = 1
        out.append(client)
    return out


def rows_of(rig, job):
    return json.loads(rig.ctl('show', job, '--json').stdout)['step']


def hasty(rig, job):
    """Peers that are gone before they are greeted: nng lets nobody in after that, until alignd
    has noticed. The gang and other clients do not lose anything by it."""
    step = rows_of(rig, job)
    for name in ('control.sock', 'watch.sock', 'worker.sock'):
        for _ in range(10):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(rig.state / name))
            sock.close()
    began = time.monotonic()
    until('alignctl list', lambda: rig.ctl('list', ok=False).returncode == 0, 20)
    Client(rig.state / 'watch.sock').call('watch_queue', rev=0)
    until('steps', lambda: rows_of(rig, job) > step, 20)
    print(f'served {time.monotonic() - began:.1f} s after hasty peers')


def main():
    rig = Rig(sys.argv[1])
    began = time.monotonic()
    crowd = []
    try:
        rig.up()
        control, watch = rig.state / 'control.sock', rig.state / 'watch.sock'
        job = rig.submit(DEMO / 'job.yaml', *SETS, f'output_dir={rig.dir}/run')
        until('steps', lambda: rows_of(rig, job) > 5)
        hasty(rig, job)
        path = rig.dir / 'run/attempts/1/rank-1.log'
        with open(path, 'ab') as log:
            log.write(b''.join(b'line %06d of something that a program prints\n' % i for i in range(20000)))
        size = path.stat().st_size
        until('the log', lambda: Client(control).call(
            'logs', job=job, attempt=1, rank=1, offset=size - 1)['size'] >= size)
        before = rss_kb(rig.pid)

        last = {'seq': 1 << 60}
        readers = [Slow(lambda: read_log(control, job, 1, size, True, 1)),
                   Slow(lambda: read_log(control, job, 1, size, True, 8)),
                   Slow(lambda: follow_rows(watch, job, lambda: last['seq'], 1)),
                   Slow(lambda: follow_rows(watch, job, lambda: last['seq'], 32))]
        shown = subprocess.Popen([str(rig.build / 'client/alignctl'), 'logs', str(job), '--rank', '1'],
                                 env=rig.env, stdout=subprocess.PIPE, bufsize=0)
        crowd = idle_crowd(control, watch, job)
        head, slowest, peak, step = b'', 0, 0, rows_of(rig, job)
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end:  # others are served as ever
            asked = time.monotonic()
            rig.ctl('list')
            slowest = max(slowest, time.monotonic() - asked)
            peak = max(peak, rss_kb(rig.pid))
            head += shown.stdout.read(1)
            for client in crowd:
                try:
                    client.sock.recv(1)
                except OSError:
                    pass
            time.sleep(1)
        assert rows_of(rig, job) > step, 'no step in all this time'
        assert slowest < 3, f'alignctl list took {slowest:.1f} s'
        assert peak - before < GROWTH_KB, f'alignd grew from {before} to {peak} KB'

        rest = shown.communicate(timeout=60)[0]
        want = path.read_bytes()
        assert want[:size] == (head + rest)[:size], 'alignctl logs lost something'
        for name, reader in zip(('one page', 'eight pages'), readers):
            log, cuts = reader.end()
            assert log[:size] == want[:size], f'{name} at a time: {len(log)} bytes of {size}'
            print(f'{name} at a time: {len(log)} bytes, cut off {cuts} times')
        rig.ctl('cancel', job)
        rig.wait_state(job, {'CANCELLED'})
        rows = rig.metrics(job, '--all')
        last['seq'] = rows[-1]['seq']
        for reader in readers[2:]:
            seqs = reader.end()
            assert seqs == [row['seq'] for row in rows], f'{len(seqs)} rows of {len(rows)}'
        print(f'{len(rows)} rows to each slow watcher; list at most {slowest:.2f} s; '
              f'RSS {before} KB, at most {peak} KB with {CROWD} more; {time.monotonic() - began:.0f} s')
    finally:
        for client in crowd:
            client.close()
        rig.close()


main()
