"""Builds sdist and wheel, installs each in fresh environments, and uses it there.

    python tools/check_package.py [--all]

Fresh environments are made with the oldest and the newest Python that pyproject.toml names and
that is on this machine (`--all`: with all of them), and once more with the oldest and the lowest
versions of the dependencies that it allows. In each, outside of this checkout: import,
`servecap --version`, `doctor`, a plan, and a small run against the emulator. What was not there to
be tried is said. Dependencies are installed by pip, as a user's would be.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND_S = 900.0
CELLS = """\
model,gpu,tp,max_users,ttft_s,tpot_ms
llama-13b,A100,4,700,2.4,91
llama-13b,A30,4,60,2.5,80
"""
RUN = ("--users", "2", "--queue", "8", "--think", "0..0.1", "--workload", "fixed:16/8")


def pythons() -> dict[str, Path | None]:
    """Each version that pyproject.toml names, with an interpreter of it, or None."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    return {version: _find(version) for version in named}


def _find(version: str) -> Path | None:
    """A `python3.X` that runs: on the PATH, or else one that pyenv keeps."""
    name = f"python{version}"
    folders = [Path(folder) for folder in os.get_exec_path()]
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders += sorted(path / "bin" for path in kept.glob(f"{version}.*"))
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for path in (folder / name for folder in folders):
        if path.is_file() and os.access(path, os.X_OK):
            said = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
            if (
                said.stdout.strip() == version
            ):  # a shim of a version manager may have nothing to run
                return path
    return None


def build(folder: Path) -> tuple[Path, Path]:
    """A new sdist and a new wheel in *folder*."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=COMMAND_S)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def lowest() -> str:
    """Constraints for pip: of each dependency the lowest minor version that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([\w.-]+)>=([\d.]+)", text) for text in project["dependencies"]]
    lines = []
    for name, version in (match.groups() for match in found if match is not None):
        minor = ".".join((*version.split("."), "0")[:2])
        lines.append(f"{name}=={minor}.*\n")
    if len(lines) != len(found):
        raise SystemExit("pyproject.toml: a dependency without a lowest version")
    return "".join(lines)


def use(python: Path, package: Path, folder: Path, constraints: str = "") -> None:
    """Install *package* in a new environment in *folder* and use it there.

    Raises:
        CalledProcessError: a step failed; its output was printed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SERVECAP_"))}

    def call(*words: str | Path, codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            words, cwd=folder, env=environment, text=True, timeout=COMMAND_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode not in codes:
            print(done.stdout)
            done.check_returncode()
        return done.stdout

    bin_ = folder / "venv" / "bin"
    call(python, "-m", "venv", folder / "venv")
    (folder / "constraints.txt").write_text(constraints)
    pip = (bin_ / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    call(*pip, "-c", folder / "constraints.txt", package)
    call(bin_ / "python", "-m", "pip", "check")
    where = call(bin_ / "python", "-c", "import servecap; print(servecap.__file__)").strip()
    if not where.startswith(str(folder)):
        raise SystemExit(f"{where} was imported, not what was installed")
    print(" ", call(bin_ / "servecap", "--version").strip())
    call(bin_ / "servecap", "doctor")
    (folder / "cells.csv").write_text(CELLS)
    call(bin_ / "servecap", "plan", "cells.csv", "--users", "10000", "--spare-nodes", "1")
    print(" ", _emulated_run(bin_ / "servecap", call, folder, environment))


def _emulated_run(servecap: Path, call: object, folder: Path, environment: dict[str, str]) -> str:
    """What a small run against the emulator says of itself."""
    assert callable(call)
    words = ["emulate", "--model", "llama-13b", "--gpu", "a100-40gb", "--speed", "4", "--port", "0"]
    emulator = subprocess.Popen(
        [servecap, *words], cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert emulator.stdout is not None
        url = next(m[0] for line in emulator.stdout if (m := re.search(r"http://[\w.:]+", line)))
        slo = ("--slo", "ttft<60s,tpot<5s", "--quiet")
        # 4: this machine was too busy for its figures to be believed, but all else is there
        call(servecap, "run", "--url", url, *RUN, *slo, "--out", folder / "run", codes=(0, 4))
        call(servecap, "report", folder / "run", "--html", folder / "page.html")
    finally:
        emulator.send_signal(signal.SIGTERM)
        emulator.wait(60)
    told = json.loads((folder / "run" / "summary.json").read_text())
    said = f"emulated run: {told['requests_ok']} of {told['requests']} requests ok"
    if not told["requests"] == told["requests_ok"] == int(RUN[RUN.index("--queue") + 1]):
        raise SystemExit(said)
    return said


def main() -> int:
    found = pythons()
    for version in (version for version, path in found.items() if path is None):
        print(f"not tried: there is no Python {version} here")
    there = [(version, path) for version, path in found.items() if path is not None]
    if "--all" not in sys.argv[1:]:
        there = [*there[:1], *there[1:][-1:]]
    with tempfile.TemporaryDirectory(prefix="servecap-package-") as name:
        sdist, wheel = build(Path(name))
        tried = [(wheel, *one, "") for one in there]
        tried += [(sdist, *there[0], ""), (wheel, *there[0], lowest())]
        for number, (package, version, path, bounds) in enumerate(tried):
            which = " and the lowest dependencies" if bounds else ""
            print(f"{package.name} with Python {version}{which}", flush=True)
            folder = Path(name) / str(number)
            folder.mkdir()
            use(path, package, folder, bounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
