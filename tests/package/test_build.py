"""What is built: all that a user needs is in it, and the same source gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", ".gitignore")


def built(source: Path, target: Path, *kinds: str, epoch: str = "1700000000") -> list[Path]:
    """The packages of those kinds that are built from *source*, sorted by name."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    subprocess.run(
        [*command, *(word for kind in kinds for word in ("-t", kind))],
        cwd=source,
        check=True,
        capture_output=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
    )
    return sorted(target.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that no two builds see the same times or folder."""
    return copied(tmp_path_factory.mktemp("source") / "first")


def copied(folder: Path) -> Path:
    folder.mkdir()
    for name in BUILT_FROM:
        shutil.copyfile(ROOT / name, folder / name)  # its time is now
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored, copy_function=shutil.copyfile)
    return folder


@pytest.fixture(scope="module")
def packages(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """sdist, wheel"""
    sdist, wheel = sorted(
        built(source, tmp_path_factory.mktemp("dist"), "sdist", "wheel"), key=lambda p: p.suffix
    )
    assert (sdist.suffix, wheel.suffix) == (".gz", ".whl")
    return sdist, wheel


def tracked() -> set[str]:
    """The files of the package, as paths below `src`."""
    return {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_has_every_file_of_the_package_and_nothing_else(packages: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(packages[1]) as wheel:
        names = set(wheel.namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == tracked()
    assert "servecap/py.typed" in names
    for suffix in (".jsonl.gz", ".csv", ".j2", ".css", "zh.txt", "models.json"):
        assert any(name.endswith(suffix) for name in names), f"no {suffix}"
    assert {name.rpartition("/")[2] for name in info} >= {"METADATA", "LICENSE", "NOTICE"}


def test_sdist_is_the_source_and_builds_the_same_wheel(
    packages: tuple[Path, Path], tmp_path: Path
) -> None:
    sdist, wheel = packages
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert {str(p.relative_to(unpacked / "src")) for p in (unpacked / "src").rglob("*")
            if p.is_file()} == tracked()  # fmt: skip
    assert not (unpacked / "tests").exists()
    (again,) = built(unpacked, tmp_path / "dist", "wheel")
    assert again.read_bytes() == wheel.read_bytes()


def test_two_builds_are_the_same_bytes(packages: tuple[Path, Path], tmp_path: Path) -> None:
    """Another folder, other times of the files: only SOURCE_DATE_EPOCH is in the packages."""
    again = built(copied(tmp_path / "second"), tmp_path / "dist", "sdist", "wheel")
    for first, second in zip(sorted(packages), sorted(again), strict=True):
        assert _digest(first) == _digest(second), first.name
    (later,) = built(tmp_path / "second", tmp_path / "later", "wheel", epoch="1800000000")
    assert _digest(later) != _digest(packages[1]), "the time is in it, so it could have differed"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
