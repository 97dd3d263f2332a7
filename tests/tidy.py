#!/usr/bin/env python3
"""tidy.py - the rules of the code that a machine can check.

Prints `file:line: what`, exits 1 if any. Run by `meson test --suite tidy`."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else '.').resolve()
LINE_MAX = 100

# A folder may include its own headers and those of the folders named here.
MAY_INCLUDE = {
    'proto': set(),
    'kernels': set(),
    'daemon': {'proto'},
    'client': {'proto'},
    'worker': {'proto', 'kernels'},
    'tests': {'proto', 'kernels', 'daemon', 'client', 'worker', 'tests'},
}
# A library is used through one file; everything else sees only our interface.
ONLY_IN = {
    'sqlite3.h': r'daemon/store\w*\.[ch]',
    'nng/': r'proto/wire\w*\.c',
    'msgpack.h': r'proto/codec\w*\.c|daemon/store\w*\.c',
    'libfyaml.h': r'proto/spec_yaml\.c',
    'uv.h': r'daemon/\w+\.[ch]',
    'archive.h': r'worker/lines\.c',
    'pcre2.h': r'worker/(bpe|tokenizer\w*|pretoken\w*)\.c',
    'sentencepiece': r'worker/spm_shim\.cc',
    'gloo/': r'worker/coll_gloo\.cc',
    'nccl.h': r'kernels/sim/nccl\.cc',
    'oneapi/': r'kernels/cpu/\w+\.[ch]',
    'dnnl': r'kernels/cpu/\w+\.[ch]',
    'curses.h': r'client/\w+\.c',
}
# What the kernel says of this boot is read in one place.
TEXT_ONLY_IN = {
    '/proc/sys/kernel/random/boot_id': r'proto/proc\.c|tests/.*',
}
BANNED = {
    r'\b(strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atol|atof|alloca)\s*\(':
        'use the bounded or checked form',
    r'\b(rand|srand)\s*\(': 'pass the seed in',
    r'\b(TODO|FIXME|XXX)\b': 'do it, or say why not in prose',
}
QUIET = re.compile(r'^(proto|daemon|worker|kernels)/(?!.*main\.c$)(?!sim/)')
TALKS = r'(?<![\w.>])(printf|puts|exit|abort)\s*\('
errors = []


def err(path, line, what):
    errors.append(f'{path.relative_to(ROOT)}:{line}: {what}')


def strip_code(line):
    return re.sub(r'//.*|/\*.*?\*/|^\s*\*.*|"(\\.|[^"\\])*"', '', line)


def check_include(path, n, line, rel, top):
    m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)', line)
    if not m:
        return
    for lib, where in ONLY_IN.items():
        if (m.group(1) == '<' and m.group(2).startswith(lib) and top != 'tests'
                and not re.fullmatch(where, rel)):
            err(path, n, f'{lib} belongs to {where}')
    other = m.group(2).split('/')[0]
    if m.group(1) == '"' and other in MAY_INCLUDE and other != top:
        if other not in MAY_INCLUDE[top]:
            err(path, n, f'{top}/ may not include {other}/')


def check_text(path):
    rel = str(path.relative_to(ROOT))
    top = rel.split('/')[0]
    lines = path.read_text().splitlines()
    if not lines or not lines[0].startswith(f'/* {path.name} - '):
        err(path, 1, f'must begin with "/* {path.name} - <purpose>"')
    for n, line in enumerate(lines, 1):
        if len(line) > LINE_MAX:
            err(path, n, f'{len(line)} columns, more than {LINE_MAX}')
        code = strip_code(line)
        for pattern, why in BANNED.items():
            m = re.search(pattern, code)
            if m:
                err(path, n, f'{m.group(0).strip("( ")}: {why}')
        if QUIET.match(rel) and re.search(TALKS, code):
            err(path, n, 'only main.c prints and exits; log or return')
        check_include(path, n, line, rel, top)
        for text, where in TEXT_ONLY_IN.items():
            if text in line and not re.fullmatch(where, rel):
                err(path, n, f'{text} belongs to {where}')


def check_words():
    """What must not be in any committed text file."""
    out = subprocess.run(['git', '-C', str(ROOT), 'ls-files'], capture_output=True, text=True)
    listed = out.stdout.split() if out.returncode == 0 else []
    for name in listed:
        path = ROOT / name
        if not path.is_file() or path.stat().st_size > 1 << 20:
            continue
        data = path.read_bytes()
        if name == 'tests/tidy.py':
            continue
        if b'\0' in data:  # what tools write into the files they make
            if re.search(rb'/(work|root|farm)/', data):
                err(path, 1, 'a path of one machine')
            continue
        for n, line in enumerate(data.decode('utf-8', 'replace').splitlines(), 1):
            if re.search(r'(^|[\s"\'=(])/(work|root|farm)/', line):
                err(path, n, 'a path of one machine')


sources = [p for folder in MAY_INCLUDE for p in sorted((ROOT / folder).rglob('*'))
           if p.suffix in {'.c', '.h', '.cc', '.cu', '.cuh'}]
for p in sources:
    check_text(p)
check_words()
listed = '\n'.join(p.read_text() for p in ROOT.rglob('meson.build'))
for p in sources:
    names = (p.name, p.stem, re.sub('^(test|fuzz)_', '', p.stem))
    if p.suffix in {'.c', '.cc', '.cu'} and not any(n in listed for n in names):
        err(p, 1, 'in no meson.build: dead file')
print('\n'.join(errors) or f'{len(sources)} files are tidy')
sys.exit(bool(errors))
