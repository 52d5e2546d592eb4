"""Makes the Python stubs from proto/: `python scripts/gen_proto.py`, or `--check` to see that they are up to date.

The stubs are committed, so that nobody needs the compiler to install or run. They are written to the package that
the .proto files name (proto/channeld/v1/node.proto -> channeld/v1/node_pb2.py and its companions).
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(into: Path) -> list[Path]:
    """Compiles every .proto under proto/ into `into`; the packages that have stubs, as paths relative to it."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    source = ROOT / "proto"
    files = sorted(path.relative_to(source) for path in source.rglob("*.proto"))
    # protoc looks for the mypy plug-ins beside the interpreter, also where its environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    arguments = [
        "protoc",
        f"--proto_path={source}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
        *map(str, files),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see above.")
    return sorted({path.parent for path in files})


def differences(fresh: Path, packages: list[Path]) -> list[str]:
    """Stubs that are missing, stale or left over, relative to the project."""
    wrong = []
    for package in packages:
        names = {path.name for base in (fresh, ROOT) for glob in GENERATED for path in (base / package).glob(glob)}
        _, mismatch, errors = filecmp.cmpfiles(fresh / package, ROOT / package, sorted(names), shallow=False)
        wrong += [str(package / name) for name in (*mismatch, *errors)]
    return sorted(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the Python stubs from proto/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if stubs are not up to date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        packages = generate(fresh)
        wrong = differences(fresh, packages)
        if check:
            for name in wrong:
                print(f"{name} is not up to date: run `make proto`.", file=sys.stderr)
            return 1 if wrong else 0
        for name in wrong:
            if (fresh / name).exists():
                shutil.copyfile(fresh / name, ROOT / name)
            else:
                (ROOT / name).unlink()
            print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
