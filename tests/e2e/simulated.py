"""simulated.py BUILD - the whole worker on the CUDA code over simulated GPUs (backend sim), two
ranks: QLoRA DPO and SFT in fp32 and bf16, with float32 and with 8-bit moments, losses as ref and cpu have
them (numerics.md 21); stopped and
continued it ends with the same bytes; a micro-batch's size changes nothing of a loss; every rank
has the device it was given. Gradients go from device to device over NCCL's twin: the bytes of the
path through the hosts, and a rank that died is told to the other by the supervisor, since NCCL
between GPUs of one machine would not notice."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import ROOT, kill

BUILD = Path(sys.argv[1]).resolve()
if not (BUILD / 'kernels/kn_sim.so').exists():
    print('skipped: this build has no backend sim (no CUDA headers)')
    sys.exit(77)
DIR = Path(tempfile.mkdtemp(prefix='alignd-sim-', dir='/tmp'))
WORDS = 'the a cat dog runs home sun moon green tree sings over under small big'.split()
UUIDS = ['GPU-63757369-6d2d-6465-7669-636530303000', 'GPU-63757369-6d2d-6465-7669-636530303100']


def write_rows(n):
    """Short rows: every number is one of a fixed sequence."""
    state = 1

    def words(k):
        nonlocal state
        out = []
        for _ in range(k):
            state = (state * 1103515245 + 12345) % 2**31
            out.append(WORDS[state // 65536 % len(WORDS)])
        return ' '.join(out)

    with open(DIR / 'rows.jsonl', 'w') as f:
        for i in range(n):
            prompt = f'\n\nHuman: {words(3)}\n\nAssistant:'
            f.write(json.dumps({'chosen': f'{prompt} {words(2 + i % 3)}', 'rejected': f'{prompt} {words(3)}'}) + '\n')


def job(name, backend, method, bf16, **more):
    spec = {'name': name, 'method': method, 'model_name_or_path': str(ROOT / 'tests/data/tiny64'),
            'load_in_4bit': True, 'bnb_4bit_use_double_quant': True, 'lora_r': 4, 'lora_alpha': 8,
            'lora_target_modules': 'all-linear', 'learning_rate': 1e-3, 'bf16': bf16,
            'train': [{'path': str(DIR / 'rows.jsonl'), 'format': 'hh-rlhf', 'template': 'vicuna'}],
            'eval': {'split_from_train': 2}, 'max_steps': 3, 'train_batch_size': 3, 'max_length': 96, 'save_steps': 1,
            'devices': 2, 'device_type': 'gpu' if backend == 'sim' else 'cpu', 'output_dir': str(DIR / name)}
    spec.update(more)
    path = DIR / f'{name}.json'
    path.write_text(json.dumps(spec))
    return path


def run(path, backend, code=0, **env):
    done = subprocess.run([str(BUILD / 'worker/align-worker'), 'run', str(path)], capture_output=True, text=True,
                          timeout=300, env=dict(os.environ, ALIGND_BACKEND=backend, CUSIM_DEVICES='2', **env))
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def kill_a_rank(path, mode, other, backend='sim'):
    """Ends rank 1 as soon as the run's first checkpoint is there; nobody but the supervisor notices.
    other: how rank 0 must end."""
    process = subprocess.Popen([str(BUILD / 'worker/align-worker'), 'run', str(path)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               env=dict(os.environ, ALIGND_BACKEND=backend, CUSIM_DEVICES='2', CUSIM_NCCL=mode))
    out = DIR / path.stem
    end = time.monotonic() + 120
    while not (out / 'checkpoint-1').exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert kill(json.loads((out / '.gang/pids.json').read_text())['ranks'][1], signal.SIGKILL)
    said = process.communicate(timeout=120)
    assert process.returncode not in (0, 85), said
    ends = json.loads((out / '.gang/exit.json').read_text())
    assert ends['first_rank'] == 1 and ends['ranks'][0] | {'step': 0} == other | {'step': 0}, ends
    assert not (out / 'adapter_model.safetensors').exists()


def losses(name):
    rows = [json.loads(line) for line in (DIR / name / 'metrics.jsonl').read_text().splitlines()]
    out = [r[k] for r in rows for k in ('loss', 'eval_loss') if k in r]
    assert len(out) >= 2, rows
    return out


def near(a, b, allowed, what):
    for x, y in zip(losses(a), losses(b), strict=True):
        assert abs(x - y) <= allowed * max(1e-3, abs(y)), (what, x, y)


try:
    write_rows(24)
    for method in ('dpo', 'sft'):
        for bf16 in (False, True):
            kind = f'{method}-{"bf16" if bf16 else "fp32"}'
            launched = DIR / f'{kind}.kernels'
            out = run(job(f'{kind}-sim', 'sim', method, bf16), 'sim', CUSIM_KERNELS=str(launched))
            names = launched.read_text().split('\n')
            copies = sum('copy_rows' in n for n in names)
            assert copies == 0 and sum('put_s' in n for n in names) > 0, (kind, copies)
            for rank, uuid in enumerate(UUIDS):
                assert f'rank {rank}: cusim, {uuid}' in out, out
                log = (DIR / f'{kind}-sim/attempts/1/rank-{rank}.log').read_text()
                assert rank != 0 or ('backend=sim' in log and 'sums=nccl' in log), log
            run(job(f'{kind}-ref', 'ref', method, bf16), 'ref')
            near(f'{kind}-sim', f'{kind}-ref', 1e-2 if bf16 else 1e-5, kind)
            print(f'{kind}: {losses(f"{kind}-sim")}')

    # A rank killed after the first checkpoint; continued by the same command.
    whole = DIR / 'dpo-bf16-sim'
    # 75 by its own will: it was not waited for and killed after the grace.
    kill_a_rank(job('again', 'sim', 'dpo', True), 'deaf', {'code': 75, 'signal': 0})
    run(DIR / 'again.json', 'sim')
    for name in ('adapter_model.safetensors', 'checkpoint-3/state.safetensors'):
        assert (whole / name).read_bytes() == (DIR / 'again' / name).read_bytes(), name
    # NCCL's abort waits for a GPU that answers no more: then after the grace.
    kill_a_rank(job('stuck', 'sim', 'dpo', True), 'stuck', {'code': 0, 'signal': 9})

    # 8-bit moments (rank 64: k's and v's matrices are too small for them): on every backend, killed and
    # continued, the same losses; and each backend's bytes are its own, whatever happened to the run.
    eight = {'optim': 'adamw_8bit', 'lora_r': 64, 'lora_alpha': 64}
    run(job('eight-ref', 'ref', 'dpo', False, **eight), 'ref')
    for backend in ('sim', 'cpu'):
        whole8 = job(f'eight-{backend}', backend, 'dpo', False, **eight)
        run(whole8, backend)
        near(whole8.stem, 'eight-ref', 1e-5, whole8.stem)
        cut8 = job(f'eight-{backend}-killed', backend, 'dpo', False, **eight)
        kill_a_rank(cut8, 'deaf', {'code': 75, 'signal': 0}, backend)
        run(cut8, backend)
        for name in ('adapter_model.safetensors', 'checkpoint-3/state.safetensors'):
            assert (DIR / whole8.stem / name).read_bytes() == (DIR / cut8.stem / name).read_bytes(), (backend, name)
    head = (DIR / 'eight-sim/checkpoint-3/state.safetensors').read_bytes()
    assert all(n in head[:2000] for n in (b'"m8"', b'"v8"', b'"m_scale"', b'"v_scale"', b'"m32"')), head[:2000]
    print(f'8-bit moments: {losses("eight-sim")}')

    # Through the hosts: the same bytes.
    run(job('hosts', 'sim', 'dpo', True), 'sim', ALIGND_COLL='gloo')
    assert 'sums=host' in (DIR / 'hosts/attempts/1/rank-0.log').read_text()
    for name in ('adapter_model.safetensors', 'checkpoint-3/state.safetensors'):
        assert (whole / name).read_bytes() == (DIR / 'hosts' / name).read_bytes(), name

    # One example a micro-batch, and one rank: the first loss has the same bits.
    run(job('small', 'sim', 'sft', False, token_budget=1, max_steps=1), 'sim')
    run(job('alone', 'sim', 'sft', False, devices=1, max_steps=1), 'sim')
    first = losses('sft-fp32-sim')[0]
    assert losses('small')[0] == first and losses('alone')[0] == first, (losses('small'), losses('alone'), first)

    # Too little memory: refused with numbers before anything starts; and where less is there than
    # was planned with, out of memory, with what would fit.
    path = job('tight', 'sim', 'dpo', True, devices=1, max_steps=1)
    out = run(path, 'sim', code=86, CUSIM_DEVICE_MB='65')
    assert 'needs at least' in out and 'MiB free' in out, out
    shutil.rmtree(DIR / 'tight')
    out = run(path, 'sim', code=86, CUSIM_DEVICE_MB='67', CUSIM_TAKEN_KB='1500')
    assert 'out of memory' in out and 'would fit' in out, out

    # A device that is not there is refused with a sentence, before anything starts.
    out = run(job('many', 'sim', 'dpo', True, devices=3), 'sim', code=1)
    assert 'only 2 GPUs can be used here' in out, out
    print('ok')
finally:
    shutil.rmtree(DIR, ignore_errors=True)
