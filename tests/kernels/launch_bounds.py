#!/usr/bin/env python3
"""launch_bounds.py FOLDER - every kernel that promises its number of threads to the compiler is
launched with that number: with more, CUDA refuses the launch, and the simulation does not know
the promise."""
import re
import sys
from pathlib import Path

BOUND = re.compile(r"__launch_bounds__\(\s*(\w+)\s*(?:,\s*\w+\s*)?\)\s*(\w+)\s*\(")


def arguments(text):
    """What stands between the bracket that text begins with and its end, at top level."""
    depth, part, parts = 0, "", []
    for c in text:
        if c in ")]}" or (c == ">" and part.count("<") > part.count(">")):
            depth -= 1
            if depth == 0:
                return parts + [part.strip()]
        if c == "," and depth == 1:
            parts.append(part.strip())
            part = ""
        elif depth > 0:
            part += c
        if c in "([{" or (c == "<" and re.search(r"\w<$", part)):
            depth += 1
    return parts


def main():
    bounds, launches, wrong = {}, 0, []
    texts = {p: p.read_text() for p in sorted(Path(sys.argv[1]).glob("*.cu*"))}
    for text in texts.values():
        bounds.update({name: bound for bound, name in BOUND.findall(text)})
    for path, text in texts.items():
        for m in re.finditer(r"\bLAUNCH\(", text):
            args = arguments(text[m.end() - 1:])
            for name in set(re.findall(r"\w+", args[0])) & set(bounds):
                launches += 1
                if args[2] != bounds[name]:
                    wrong.append(f"{path.name}: {name} is bound to {bounds[name]} threads, launched with {args[2]}")
    print("\n".join(wrong) or f"{launches} launches of {len(bounds)} kernels with a bound")
    missing = set(bounds) - {n for t in texts.values() for m in re.finditer(r"\bLAUNCH\(", t)
                             for n in re.findall(r"\w+", arguments(t[m.end() - 1:])[0])}
    if missing:
        print("never launched: " + ", ".join(sorted(missing)))
    return 1 if wrong or missing or not launches else 0


sys.exit(main())
