"""The package as it is published: built, installed elsewhere, and run from another folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers.tiny import tiny

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[1]


def call(*words: str | Path, folder: Path) -> str:
    """Run a program that has to succeed, and return what it printed."""
    leave_out = ("PYTHONPATH", "HYDRA_FULL_ERROR")
    env = {name: value for name, value in os.environ.items() if name not in leave_out}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without hatchling here, build fetches it into an environment of its own.
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    call(sys.executable, "-m", "build", "--wheel", *here, "--outdir", folder, CHECKOUT, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the executables of an environment that has the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    where = call(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder
    ).strip()
    # A path that a .pth file adds has its own .pth files left alone, the editable installation's among them.
    Path(where, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    call(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, folder=folder)
    return folder / "bin"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_its_configuration_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    conf = files(CHECKOUT / "conf")
    assert "train.yaml" in conf
    expected = {f"defeat/{name}": content for name, content in files(CHECKOUT / "src" / "defeat").items()}
    expected |= {f"defeat/conf/{name}": content for name, content in conf.items()}
    own = {name: content for name, content in held.items() if ".dist-info/" not in name}
    assert sorted(own) == sorted(expected)
    assert own == expected
    assert "defeat/assets/scenes_teacher.safetensors" in own
    information = {name.partition(".dist-info/")[2] for name in set(held) - set(own)}
    assert information == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_installed_package_runs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = "import defeat, defeat.config; print(defeat.__file__); print(defeat.config.conf_dir())"
    module, conf = map(Path, call(installed / "python", "-c", code, folder=tmp_path).splitlines())
    assert module.is_relative_to(installed.parent)
    assert conf == module.with_name("conf")

    words = ["--cfg", "job", "+experiment=frcnn_r152_r50"]
    config = OmegaConf.create(call(installed / "defeat-train", *words, folder=tmp_path))
    assert config.name == "frcnn_r152_r50"
    assert config.student.model.backbone == "resnet50"
    assert config.teacher.model.backbone == "resnet152"
    assert list(tmp_path.iterdir()) == []

    words = [
        "+experiment=scenes_plain",
        *tiny(Path("run"), Path("scenes"), "student.model.backbone=resnet10", steps=1),
    ]
    out = call(installed / "defeat-train", *words, folder=tmp_path)
    assert "steps       1\n" in out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()
