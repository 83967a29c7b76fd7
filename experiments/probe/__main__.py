"""The command line of the probes.

    python -m experiments.probe alignment --out runs/figures/pocket/alignment model=pocket

What follows the options configures the run that is looked at, as for `experiments.run`. A folder
that holds the same measurements already is left as it is. Exit codes: 0 done, 2 bad input, 130
stopped by Ctrl-C.
"""

import argparse
import importlib
import sys
import time
from typing import Any

from experiments.config.paths import user_path
from experiments.records import tidy

UNSAID = ("out", "run", "show", "kept")  # options on which the measurements do not depend
PROBES = ("structure", "alignment", "progress", "drift", "prior", "memory", "slope", "arrival")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.probe", description=__doc__)
    kinds = parser.add_subparsers(dest="probe", required=True)
    for name in PROBES:
        module = importlib.import_module(f"experiments.probe.{name}")
        one = kinds.add_parser(name, help=module.HELP, description=module.__doc__)
        one.add_argument("--out", type=user_path, required=True, help="folder of the tables")
        module.arguments(one)
        one.add_argument("overrides", nargs="*", help="of the run: model=... task=... method=...")
        one.set_defaults(run=module.run, show=getattr(module, "show", None))
    # argparse cannot intermix positionals and options behind a subcommand.
    options, rest = parser.parse_known_args(arguments)
    if wrong := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"{' '.join(wrong)}: no such option")
    options.overrides += rest
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for."""
    given = sys.argv[1:] if arguments is None else arguments
    begin = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {line}", file=sys.stderr, flush=True)

    options = parse(given)
    try:
        if tidy.finished(options.out, settings(options)):
            print(f"{options.out}: measured already")
            return shown(options)
        options.kept = tidy.Kept(options.out, settings(options))
        about, tables = options.run(options, say)
        about |= {
            "command": f"python -m experiments.probe {' '.join(given)}",
            "settings": settings(options),
            "seconds": time.perf_counter() - begin,
        }
        tidy.write(options.out, about, tables)
        options.kept.clear()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    rows = ", ".join(f"{name} ({len(table)} rows)" for name, table in tables.items())
    print(f"{options.out}: {rows}")
    return shown(options)


def shown(options: argparse.Namespace) -> int:
    """Print what a user reads of a finished folder, and return the exit code."""
    if options.show:
        options.show(options.out)
    return 0


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the measurements depend on."""
    return {key: value for key, value in vars(options).items() if key not in UNSAID}


if __name__ == "__main__":
    sys.exit(main())
