"""other_release.py BUILD - alignctl beside a daemon of another release, clients and gangs of
another release beside the real daemon. Both sides hear which versions the other speaks;
alignctl ends with exit code 7, whatever the verb."""
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rawwire import NUMBER, Client, Server
from rig import DEMO, Rig

VERSION = 4
VERBS = (['list'], ['show', '1'], ['watch', '1'], ['wait', '1'], ['logs', '1'], ['metrics', '1'],
         ['cancel', '1'], ['devices'], ['submit', str(DEMO / 'job.yaml')], ['down'], ['up'])


def served(rig, answer):
    """A daemon that answers every hello in its own way; returns what alignctl said to each."""
    path = rig.dir / 'other.sock'
    path.unlink(missing_ok=True)
    server = Server(path)

    def serve():
        while True:
            try:
                server.serve(answer)
            except (OSError, AssertionError):
                return
    threading.Thread(target=serve, daemon=True).start()
    out = {}
    for verb in VERBS:
        done = subprocess.run([str(rig.build / 'client/alignctl'), '--host', f'ipc://{path}', *verb], env=rig.env,
                              capture_output=True, text=True, timeout=60)
        out[verb[0]] = (done.returncode, done.stdout, done.stderr)
    server.sock.close()
    return out


def newer_daemon(rig):
    asked = []

    def refuses(m):
        asked.append(m)
        return {'v': 3, 't': NUMBER['error'], 'code': VERSION, 'text': 'hello: version 1 is not spoken here (2 to 3)',
                'v_min': 2, 'v_max': 3, 'a key of release 3': [1, 2.5, {'x': None}]}
    for verb, (code, out, err) in served(rig, refuses).items():
        assert code == 7, f'{verb}: {code} {out}{err}'
        assert not out and 'speaks versions 2 to 3' in err and 'this alignctl' in err and '1 to 1' in err, (verb, err)
    assert {m['t'] for m in asked} == {NUMBER['hello']} and len(asked) == len(VERBS)
    assert all(m['v'] == m['v_min'] == 1 for m in asked), asked[0]
    # One that answers in its own dialect at once.
    for verb, (code, out, err) in served(rig, lambda m: {'v': 2, 't': NUMBER['welcome']}).items():
        assert code == 7 and 'use the one that came with it' in err, (verb, code, err)
    print(f'{len(VERBS)} verbs against a daemon of release 2 to 3: exit code 7, and why')


def older_daemon(rig):
    def refuses(m):
        return {'v': 0, 't': NUMBER['error'], 'code': VERSION, 'text': 'version 1?', 'v_min': 0, 'v_max': 0}
    code, _, err = served(rig, refuses)['list']
    assert code == 7 and 'a version this alignctl' in err, (code, err)  # there never was a version 0
    code, _, err = served(rig, lambda m: {'v': 1, 't': NUMBER['error'], 'code': VERSION, 'text': 'x',
                                          'v_min': 1, 'v_max': 1})['list']
    assert code == 7 and 'versions 1 to 1' in err, err


def expect(client, name, version, **fields):
    e = client.call(name, version, **fields)
    assert (e['t'], e['code'], e['v_min'], e['v_max']) == (NUMBER['error'], VERSION, 1, 1), (name, version, e)
    assert e['v'] == 1 and e['text'], e
    return e['text']


def other_clients(rig):
    control, watch, worker = (Client(rig.state / f'{s}.sock') for s in ('control', 'watch', 'worker'))
    token = bytes(32)
    who = {'job': 1, 'attempt': 1, 'token': token}
    assert 'version 0' in expect(control, 'hello', 0, v_min=0, v_max=0, build='0.0.1')
    assert 'version 2' in expect(control, 'hello', 2, v_min=2, v_max=4, build='0.2.0')
    assert 'one release' in expect(control, 'hello', 1, v_min=2, v_max=4)
    expect(control, 'list', 2)
    expect(control, 'submit', 4, key=bytes(16), spec='in another form')
    expect(control, 99, 2, new='a message that came with release 2')
    expect(watch, 'watch_queue', 2, rev=0)
    expect(worker, 'w_hello', 2, **who, v_min=2, v_max=2)
    expect(worker, 'w_hello', 1, **who, v_min=2, v_max=2)
    expect(worker, 'w_report', 3, **who)
    e = control.call(99, 1)  # of this version, and unknown: another fault
    assert e['code'] == 6, e
    welcome = control.call('hello', 1, v_min=1, v_max=7, build='0.7.0', more='a key of release 7')
    assert welcome['t'] == NUMBER['welcome'] and welcome['version'] == 1, welcome
    assert control.call('list', 1)['t'] == NUMBER['json']  # none of them lost the connection
    print('ten requests of other releases: VERSION with the range, on three sockets; one that spans this one is served')


def main():
    rig = Rig(sys.argv[1])
    began = time.monotonic()
    try:
        rig.up()
        for test in (newer_daemon, older_daemon, other_clients):
            test(rig)
        print(f'{time.monotonic() - began:.0f} s')
    finally:
        rig.close()


main()
