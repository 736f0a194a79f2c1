"""
Run the benchmarks, each in a process of its own, one after the other.

    python -m benchmarks                        all of them, as long as the documented figures took: about an hour
    python -m benchmarks --smoke                all of them, short: do they run?
    python -m benchmarks cache redis_link       those whose names begin so
    python -m benchmarks --list                 their names and questions
    python -m benchmarks cache --json           one JSON object by name; --save also writes it to benchmarks/results

One that fails does not keep the others from running; the exit code says that one did.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
#: How long one that was interrupted may take to end its servers and workers.
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one benchmark ended."""

    name: str
    seconds: float
    exit_code: int
    said: str  #: on its standard output


def questions() -> dict[str, str]:
    """The benchmarks there are, by name: the first sentence of each."""
    paths = sorted(path for path in _HERE.glob("*.py") if not path.name.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def chosen(names: list[str], beginnings: list[str]) -> list[str]:
    """Those that begin with one of these, all without any."""
    unknown = [each for each in beginnings if not any(name.startswith(each) for name in names)]
    if unknown:
        raise SystemExit(f"no benchmark begins with {', '.join(unknown)}; there are: {', '.join(names)}")
    return [name for name in names if not beginnings or name.startswith(tuple(beginnings))]


def run(name: str, flags: list[str]) -> Outcome:
    """One of them. What it says about its progress is shown on a terminal, elsewhere only when it has failed."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress = None if sys.stderr.isatty() else stack.enter_context(tempfile.TemporaryFile("w+"))
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=progress, text=True, start_new_session=True)
        try:
            said = process.communicate()[0]
        except BaseException:
            end(process)
            raise
        if process.returncode and progress is not None:
            progress.seek(0)
            sys.stderr.writelines(progress.readlines()[-30:])
    return Outcome(name, time.monotonic() - started, process.returncode, said)


def end(process: subprocess.Popen[str]) -> None:
    """Interrupt it and its workers, once, as a terminal would; after a while, end them."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_all(names: list[str], flags: list[str], *, as_json: bool) -> list[Outcome]:
    """One after the other; each table when it is there."""
    outcomes = []
    for at, name in enumerate(names, 1):
        print(f"[{at}/{len(names)}] {name} …", file=sys.stderr, flush=True)
        outcome = run(name, flags)
        outcomes.append(outcome)
        if not as_json:
            print(outcome.said, flush=True)
        verdict = "failed" if outcome.exit_code else "done"
        print(f"[{at}/{len(names)}] {name} {verdict} after {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
    return outcomes


def reports(outcomes: list[Outcome]) -> dict[str, Any]:
    """What they found, by name; of one that has failed and says nothing, its exit code."""
    return {
        each.name: json.loads(each.said) if each.said.strip() else {"exit_code": each.exit_code} for each in outcomes
    }


def main() -> int:
    """Read the options, run, say what failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="beginnings of names; all without any")
    parser.add_argument("--list", action="store_true", help="their names and questions")
    parser.add_argument("--smoke", action="store_true", help="short: do they run?")
    parser.add_argument("--json", action="store_true", help="the reports as one JSON object, by name")
    parser.add_argument("--save", action="store_true", help="with --json: write each to benchmarks/results/NAME.json")
    args = parser.parse_args()
    if args.save and (args.smoke or not args.json):
        parser.error("--save goes with --json and not with --smoke: what is committed are real figures")
    known = questions()
    names = chosen(list(known), args.names)
    if args.list:
        for name in names:
            print(f"{name:20} {known[name]}")
        return 0
    flags = ["--smoke"] * args.smoke + ["--json"] * args.json
    try:
        outcomes = run_all(names, flags, as_json=args.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if args.json:
        found = reports(outcomes)
        print(json.dumps(found, indent=2, ensure_ascii=False))
        for each in outcomes if args.save else []:
            if not each.exit_code:
                text = json.dumps(found[each.name], indent=2, ensure_ascii=False)
                (_HERE / "results" / f"{each.name}.json").write_text(f"{text}\n")
    failed = [each.name for each in outcomes if each.exit_code]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
