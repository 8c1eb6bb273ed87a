"""The wheel: three packages and the embedded model, nothing else; it works where it lands."""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sdxl_core", "cluster", "jobs")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, for setuptools writes beside the sources."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(copy)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_three_packages_and_the_embedded_model_and_nothing_else(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == set(PACKAGES)
    sources = {name for name in tracked_files() if name.split("/")[0] in PACKAGES}
    assert {name for name in inside if name.endswith(".py")} == {
        name for name in sources if name.endswith(".py")
    }
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside
    for model in ("tiny", "tiny-refiner"):
        folder = f"sdxl_core/assets/{model}/"
        weights = {n for n in inside if n.startswith(folder) and n.endswith(".safetensors")}
        assert {name.removeprefix(folder).split("/")[0] for name in weights} >= {"unet", "vae"}
    data = ("sdxl_core/assets/", "sdxl_core/storage/templates/", "cluster/deploy/", "jobs/recipes/")
    others = {n for n in inside if not n.endswith((".py", "py.typed")) and not n.startswith(data)}
    assert others == set()
    assert wheel.stat().st_size < 45e6


@pytest.mark.ray
def test_installed_wheel_generates_pictures_outside_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    python = install(wheel, tmp_path / "venv")
    (tmp_path / "prompts.csv").write_text("id,prompt,steps\na,a red circle,4\nb,a blue square,4\n")
    command = [str(python.parent / "sdxl"), "generate", "prompts.csv", "out", "--model", "tiny"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2
    where = "import sdxl_core; print(sdxl_core.__file__)"
    found = subprocess.check_output([python, "-c", where], cwd=tmp_path, text=True)
    assert found.startswith(str(tmp_path))


def tracked_files() -> list[str]:
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel, which finds the libraries of the one that runs the tests.

    Only its folder of libraries is added, not what ``.pth`` files there point to: were this
    repository installed there in editable form, it would stay out of sight.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python
