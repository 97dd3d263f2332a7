"""bad_input.py BUILD - what a person gets wrong, and what files can be: a sentence that
names it, an exit code, nothing queued, no crash."""
import gzip
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import DEMO

JOB = '''method: dpo
model_name_or_path: m
train: [{path: d.jsonl, format: preference}]
max_steps: 2
train_batch_size: 2
device_type: cpu
output_dir: out
'''
ROW = {'prompt': 'What is it?', 'chosen': ' It is good.', 'rejected': ' Go away.'}


class Case:
    def __init__(self, build, base):
        self.build, self.dir, self.more = build, base, []
        self.model, self.data, self.job = base / 'm', base / 'd.jsonl', base / 'job.yaml'
        shutil.copytree(DEMO, self.model)
        self.data.write_text(''.join(json.dumps(ROW | {'prompt': f'Question {i}?'}) + '\n' for i in range(8)))
        self.job.write_text(JOB)

    def check(self):
        done = subprocess.run([str(self.build / 'client/alignctl'), 'check', str(self.job), *self.more], cwd=self.dir,
                              capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr


def header(model, change):
    path = model / 'model.safetensors'
    raw = path.read_bytes()
    n = struct.unpack('<Q', raw[:8])[0]
    head = json.loads(raw[8:8 + n])
    text = json.dumps(change(head)).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + raw[8 + n:])


def overlap(head):
    names = [k for k in head if k != '__metadata__']
    head[names[0]]['data_offsets'] = head[names[1]]['data_offsets']
    return head


def longer(head):
    name = next(k for k in head if k != '__metadata__')
    head[name]['data_offsets'][1] = 1 << 60
    return head


def cut(path, to):
    path.write_bytes(path.read_bytes()[:to])


def config_of(model, name, **values):
    path = model / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def config(model, **values):
    config_of(model, 'config.json', **values)


def only_pickle(model):
    (model / 'model.safetensors').unlink()
    (model / 'pytorch_model.bin').write_bytes(b'\x80\x02')


def other_tokenizer(case):
    shutil.rmtree(case.model)
    shutil.copytree(DEMO.parent / 'tiny64', case.model)
    shutil.copy(DEMO / 'tokenizer.json', case.model)


def all_at_once(case):
    """One problem of the keys hides none of the model's, the data's and the machine's."""
    case.job.write_text(JOB.replace('device_type: cpu', 'device_type: gpu') + 'learning_rat: 1\n')
    case.data.write_text('hello\n' * 20)
    (case.model / 'tokenizer.json').unlink()
    (case.dir / 'out').write_text('')


def in_cache(case, **links):
    """The model as a snapshot of the Hugging Face cache, some of its files links to elsewhere."""
    snapshot = case.dir / 'hub/models--org--name/snapshots/0123456789abcdef'
    snapshot.parent.mkdir(parents=True)
    shutil.move(case.model, snapshot)
    for name, target in links.items():
        path = snapshot / name.replace('_json', '.json')
        path.unlink()
        path.symlink_to(target)
    case.job.write_text(JOB.replace('m\n', f'{snapshot}\n', 1))


# name, what is done to the case, what the sentence holds; None for code: 1
CASES = [
    ('good', lambda c: None, 'ok: batch 2', 0),
    ('unknown key', lambda c: c.job.write_text(JOB + 'learning_rat: 1\n'), 'did you mean learning_rate?', 1),
    ('wrong value', lambda c: c.job.write_text(JOB + 'beta: -1\n'), 'beta: must be more than 0', 1),
    ('not YAML', lambda c: c.job.write_text(JOB + 'a: [\n'), 'not YAML', 1),
    ('binary job', lambda c: c.job.write_bytes(bytes(range(256))), 'job.yaml', 1),
    ('everything at once', lambda c: (c.data.unlink(), shutil.rmtree(c.model), c.job.write_text(JOB + 'beta: -1\n')),
     'd.jsonl: No such file', 1),
    ('each at its line', all_at_once,
     ('job.yaml:2: ', 'no tokenizer.json', 'job.yaml:6: device_type', 'job.yaml:7: output_dir', 'job.yaml:8: learning_rat'), 1),
    ('data and a wrong key', lambda c: (c.job.write_text(JOB + 'learning_rat: 1\n'), c.data.write_text('hello\n' * 20)),
     ('job.yaml:3: ', 'd.jsonl: none of its 20 rows', 'job.yaml:8: '), 1),
    ('a link out of the cache', lambda c: in_cache(c, config_json='/etc/passwd'), ('config.json', 'leads to /etc/passwd'), 1),
    ('a link to nothing', lambda c: in_cache(c, tokenizer_json='../../blobs/a'), 'unfinished download', 1),
    ('no job', lambda c: c.job.unlink(), 'No such file', 1),
    ('no data', lambda c: c.data.unlink(), 'd.jsonl', 1),
    ('empty data', lambda c: c.data.write_text(''), 'd.jsonl', 1),
    ('no row of use', lambda c: c.data.write_text('{"prompt":"a","chosen":"b","rejected":"b"}\n' * 3), 'd.jsonl', 1),
    ('data no JSON', lambda c: c.data.write_text('hello\n' * 20), 'd.jsonl', 1),
    ('data binary', lambda c: c.data.write_bytes(b'\x00\xff\x1f\x8b' * 1000), 'd.jsonl', 1),
    ('parquet', lambda c: c.job.write_text(JOB.replace('d.jsonl', 'd.parquet')), 'parquet', 1),
    ('broken gzip', lambda c: (c.job.write_text(JOB.replace('d.jsonl', 'd.gz')),
                               (c.dir / 'd.gz').write_bytes(gzip.compress(c.data.read_bytes())[:40])), 'd.gz', 1),
    ('data is a folder', lambda c: (c.data.unlink(), c.data.mkdir()), 'd.jsonl', 1),
    ('no model', lambda c: shutil.rmtree(c.model), 'neither a folder', 1),
    ('a file for a model', lambda c: (shutil.rmtree(c.model), c.model.write_text('')), 'm is a file', 1),
    ('a bad --set hides nothing', lambda c: setattr(c, 'more', ['--set', 'lora_r=1e999', '--set', 'beta=x']),
     ('lora_r=1e999', 'beta: must be a number'), 1),
    ('no config', lambda c: (c.model / 'config.json').unlink(), 'config.json', 1),
    ('config no JSON', lambda c: (c.model / 'config.json').write_text('{'), 'config.json', 1),
    ('other architecture', lambda c: config(c.model, architectures=['FalconForCausalLM'], model_type='falcon'),
     'alcon', 1),
    ('odd sizes', lambda c: config(c.model, hidden_size=-1), 'hidden_size', 1),
    ('heads do not divide', lambda c: config(c.model, num_key_value_heads=3), 'num_key_value_heads', 1),
    ('no weights', lambda c: (c.model / 'model.safetensors').unlink(), 'safetensors', 1),
    ('only a pickle', lambda c: only_pickle(c.model), 'reads no pickles', 1),
    ('truncated weights', lambda c: cut(c.model / 'model.safetensors', 200000), 'model.safetensors', 1),
    ('eight bytes', lambda c: cut(c.model / 'model.safetensors', 8), 'model.safetensors', 1),
    ('header lies: overlap', lambda c: header(c.model, overlap), 'model.safetensors', 1),
    ('header lies: length', lambda c: header(c.model, longer), 'model.safetensors', 1),
    ('header huge', lambda c: (c.model / 'model.safetensors').write_bytes(b'\xff' * 64), 'model.safetensors', 1),
    ('chat template nobody knows', lambda c: (config_of(c.model, 'tokenizer_config.json', chat_template='{% for m in x %}'),
                                              c.job.write_text(JOB.replace('preference}', 'preference, template: model}'))),
     "for p in [r['prompt']]]\"", 1),
    ('no tokenizer', lambda c: (c.model / 'tokenizer.json').unlink(), 'tokenizer', 1),
    ('tokenizer no JSON', lambda c: cut(c.model / 'tokenizer.json', 1000), 'tokenizer.json', 1),
    ('config too small', lambda c: config(c.model, vocab_size=100), 'config.json says [100', 1),
    ('tokenizer too big', lambda c: other_tokenizer(c), 'tokenizer', 1),
    ('used folder', lambda c: ((c.dir / 'out').mkdir(), (c.dir / 'out/x').write_text('')), '--overwrite', 6),
    ('folder of a file', lambda c: (c.dir / 'out').write_text(''), 'out', None),
]


def main():
    build, failed = Path(sys.argv[1]).resolve(), []
    for name, spoil, says, code in CASES:
        base = Path(tempfile.mkdtemp(prefix='alignd-bad-', dir='/tmp'))
        try:
            case = Case(build, base)
            spoil(case)
            got, text = case.check()
            right = got == code if code is not None else got in (1, 6)
            wanted = [says] if isinstance(says, str) else says
            if not right or any(w not in text for w in wanted) or 'signal' in text:
                failed.append(f'{name}: code {got}, wanted {code} and "{says}":\n{text}')
        finally:
            shutil.rmtree(base, ignore_errors=True)
    none = subprocess.run([str(build / 'client/alignctl'), 'check', '/nonexistent.yaml', '--json'], capture_output=True, text=True)
    if none.returncode != 1 or json.loads(none.stdout)['ok'] is not False:
        failed.append(f'--json without a file: {none}')
    for f in failed:
        print(f)
    print(f'bad_input: {len(CASES) - len(failed)} of {len(CASES)} ok')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
