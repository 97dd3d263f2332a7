"""harness.py - how tests/gpu/run runs programs, keeps what they said, and writes its results."""
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from figures import Bars

HERE = Path(__file__).resolve().parent


class Skip(Exception):
    """Cannot be run here; says why."""


class Fail(Exception):
    """A check that does not hold; code: the exit status of the program that says so."""

    def __init__(self, text, code=None):
        super().__init__(text)
        self.code = code


class NoDevice(Exception):
    """There is nothing to run on."""


class Run:
    def __init__(self, args):
        self.args, self.sim = args, args.device == "sim"
        self.begin, self.until = time.monotonic(), None
        self.work = Path(args.work or tempfile.mkdtemp(prefix="alignd-gpu-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.result = {"device": args.device, "sections": {}, "checks": [], "measured": []}
        self.bars = Bars(self.result)
        self.model = None
        self.ceil = {}
        self.json = Path(args.json or self.work / "gpu-run.json").resolve()
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.log = open(self.json.with_suffix(".log"), "w")
        # KN_DEBUG: the backend says which CUDA call failed, not only that one did.
        self.env = dict(os.environ, KN_REQUIRE=args.device, ALIGND_BACKEND=args.device, KN_DEBUG="1",
                        ALIGND_SOURCE_ROOT=str(HERE.parent.parent))
        if args.build:
            subprocess.run(["ninja", "-C", args.build, "--quiet"], check=True)
            self.begin = time.monotonic()
        if args.build or args.source:
            build = Path(args.build or args.source).resolve()
            self.folders = [build / p for p in ("worker", "daemon", "client", "tests/kernels",
                                                "tests/kernels/sim", "tests/worker", "tests/gpu")]
            self.env["ALIGND_KERNELS"] = str(build / "kernels")
            self.data = HERE.parent / "data"
        else:
            root = HERE.parent.parent
            self.folders = [root / "bin", root / "tests/bin"]
            self.env["ALIGND_KERNELS"] = str(root / "lib/alignd")
            libs = [str(root / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
            self.env["LD_LIBRARY_PATH"] = ":".join(x for x in libs if x)
            self.data = root / "tests/data"

    def find(self, name):
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        raise Skip(f"{name} is not in this build")

    def left(self):
        return max(1.0, self.until - time.monotonic())

    def note(self, args, env, said, code, start):
        more = " ".join(f"{k}={v}" for k, v in (env or {}).items())
        print(f"$ {more} {' '.join(args)}\n{said}[exit {code}, {time.monotonic() - start:.1f} s]\n", file=self.log, flush=True)

    def program(self, args, env=None, limit=None):
        """Exit status (None: it did not end in time) and output, which the log keeps whole. Files and
        not pipes: whoever it started and left behind would keep those open."""
        args, limit = [str(a) for a in args], min(self.left(), limit or 1e9)
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                 env={**self.env, "BENCH_BEGAN": f"{start:.6f}", **(env or {})})
            try:
                code = p.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                p.terminate()
                try:
                    p.wait(5)
                except subprocess.TimeoutExpired:
                    p.kill()
                    p.wait()
            except BaseException:  # this program is being ended
                p.kill()
                p.wait()
                raise
            text = []
            for f in (out, err):
                f.seek(0)
                text.append(f.read().decode(errors="replace"))
        self.note(args, env, text[0] + text[1], code, start)
        return code, text[0], text[1]

    def call(self, args, check=None, env=None, limit=None, late=False):
        """Runs a program within the section's time. check: the name of a check that it is; late: the check
        says nothing when its time runs out."""
        start = time.monotonic()
        code, out, err = self.program(args, env, limit)
        said = f"exit {code}" if code is not None else f"did not end within {time.monotonic() - start:.0f} s"
        said += f": {(out + err)[-1500:]}"
        if check and (code == 77 or (code is None and late)):
            return self.check(check, None, out.strip()[-300:] if code else said.split(":")[0], start)
        if check and code != 0 and not self.sim and ".cu:" in err and self.left() > 10:
            # A kernel's failure shows at some later call; so it shows where it is.
            again = self.program(args, {**(env or {}), "CUDA_LAUNCH_BLOCKING": "1"}, limit)
            said += f"\n          launches one by one: exit {again[0]}: {(again[1] + again[2])[-700:]}"
        if check:
            self.check(check, code == 0, "" if code == 0 else said, start)
        elif code != 0:
            raise Fail(f"{Path(str(args[0])).name}: {said}", code)
        return out + (err if check else "")

    def save(self):
        self.result["seconds"] = round(time.monotonic() - self.begin, 1)
        new = self.json.with_suffix(".new")
        new.write_text(json.dumps(self.result, indent=1) + "\n")
        new.replace(self.json)

    def check(self, name, ok, detail="", start=None):
        """ok None: skipped."""
        word = "ok" if ok else "FAILED" if ok is not None else "skipped"
        took = time.monotonic() - start if start else 0
        print(f"  {word:<8}{name}" + (f"  {took:.1f} s" if start else "") +
              (f"\n          {detail}" if detail and ok is not True else f"  {detail}" if detail else ""), flush=True)
        self.result["checks"].append({"name": name, "ok": ok, "detail": detail, "seconds": round(took, 2)})

    def outcome(self, what, measured, unit, bar=None, least=True, note=""):
        print(self.bars.line(self.bars.add(what, measured, unit, bar, least, note)), flush=True)


def find_torch(r):
    for python in filter(None, (os.environ.get("BENCH_PYTHON"), shutil.which("python3"), shutil.which("python"))):
        probe = "import torch, peft, transformers, accelerate" + ("" if r.sim else "; assert torch.cuda.is_available()")
        try:
            if subprocess.run([python, "-c", probe], capture_output=True, timeout=min(90, r.left())).returncode == 0:
                return python
        except subprocess.TimeoutExpired:
            pass
    return None


class Torch:
    """torch_loop.py as a process that is asked for steps, so that its model is loaded once."""

    def __init__(self, r, python, case):
        self.r = r
        env = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        self.p = subprocess.Popen([python, HERE / "torch_loop.py", case], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=r.log, env=env, text=True, bufsize=1)
        self.hello = self.answer()

    def answer(self):
        ready, _, _ = select.select([self.p.stdout], [], [], self.r.left())
        line = self.p.stdout.readline() if ready else ""
        print(f"torch_loop.py: {line}", file=self.r.log, flush=True)
        if not line.startswith("{"):
            raise Fail(f"torch_loop.py {'ended' if ready else 'did not answer in time'}; see {self.r.log.name}")
        return json.loads(line)

    def ask(self, name, n):
        self.p.stdin.write(f"{name} {n}\n")
        return self.answer()

    def close(self):
        self.p.stdin.close()
        try:
            self.p.wait(10)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
