#!/usr/bin/env python3
"""Writes worker/tokenizer_nfc_table.h from Python's unicodedata.

usage: nfc_table.py > worker/tokenizer_nfc_table.h
"""
import sys
import textwrap
import unicodedata as u


def main():
    classes = []
    pairs = []
    for cp in range(0x110000):
        if 0xD800 <= cp < 0xE000 or 0xAC00 <= cp < 0xD7A4:
            continue
        c = chr(cp)
        ccc = u.combining(c)
        if ccc:
            if classes and classes[-1][1] == cp - 1 and classes[-1][2] == ccc:
                classes[-1][1] = cp
            else:
                classes.append([cp, cp, ccc])
        d = u.decomposition(c)
        if d and not d.startswith('<'):
            parts = [int(x, 16) for x in d.split()]
            a, b = parts[0], parts[1] if len(parts) > 1 else 0
            composes = b and u.normalize('NFC', chr(a) + chr(b)) == c
            pairs.append((cp, a, b, bool(composes)))
    index = sorted((a, b, i) for i, (cp, a, b, comp) in enumerate(pairs) if comp)

    out = sys.stdout
    out.write('/* tokenizer_nfc_table.h - canonical classes and decompositions, Unicode %s; '
              'made by\n * tests/oracle/nfc_table.py. */\n' % u.unidata_version)
    out.write('/* clang-format off */\n')

    def table(kind, name, items):
        out.write('static const %s %s[] = {\n' % (kind, name))
        out.write('\n'.join(textwrap.wrap(', '.join(items), 98)) + ',\n};\n')

    table('struct nfc_class', 'nfc_classes', ['{0x%x,0x%x,%d}' % tuple(x) for x in classes])
    table('struct nfc_pair', 'nfc_pairs', ['{0x%x,0x%x,0x%x}' % x[:3] for x in pairs])
    out.write('/* Indices of the pairs that compose, by (first, second). */\n')
    table('uint16_t', 'nfc_compositions', ['%d' % i for _, _, i in index])
    out.write('/* clang-format on */\n')


main()
