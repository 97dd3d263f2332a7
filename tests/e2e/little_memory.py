"""little_memory.py BUILD - `align-worker run` under limits of the address space (ulimit -v), from
too little to load to enough: it trains within what there is or says what is missing; no
rank dies of a signal."""
import resource
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO, Rig

LIMITS_KB = (62000, 110000, 150000, 200000, 246000)
SETS = ['max_steps=2', 'save_steps=2', 'eval_steps=2', 'threads_per_device=1', 'eval={split_from_train: 8}']
DONE, ERROR, OUT_OF_MEMORY, NOT_LOADED = 0, 1, 86, 127


def run(rig, kb, out):
    limit = (kb << 10, kb << 10)
    args = [x for s in SETS for x in ('--set', s)]
    done = rig.worker('run', DEMO / 'job.yaml', *args, '--set', f'output_dir={out}',
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    said = done.stdout + done.stderr
    assert done.returncode in (DONE, ERROR, OUT_OF_MEMORY, NOT_LOADED), (kb, done.returncode, said)
    assert 'signal' not in said, said
    if done.returncode == DONE:
        assert (out / 'adapter_model.safetensors').exists()
    else:
        assert any(x in said for x in ('MiB', 'memory', 'map segment')), said
    return done.returncode


def main():
    rig = Rig(sys.argv[1])
    dir = Path(tempfile.mkdtemp(prefix='alignd-memory-', dir='/tmp'))
    try:
        codes = {kb: run(rig, kb, dir / str(kb)) for kb in LIMITS_KB}
        assert OUT_OF_MEMORY in codes.values(), codes
        print(', '.join(f'{kb} KB: {code}' for kb, code in codes.items()))
    finally:
        shutil.rmtree(dir)
        rig.close()


main()
