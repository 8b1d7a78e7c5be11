"""docs/performance.md: its settings and commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from defeat.config import compose_config

CHECKOUT = Path(__file__).resolve().parents[1]
DOCUMENT = (CHECKOUT / "docs" / "performance.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.M | re.S)
    for line in block.replace("\\\n", "").splitlines()
]
SETTINGS = re.findall(r"^\| `([^`]+=[^`]+)` \|", DOCUMENT.partition("\n## On a GPU\n")[2], re.M)


def test_all_are_found() -> None:
    assert len(COMMANDS) >= 13
    assert len(SETTINGS) >= 6


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_for_a_gpu_compose(setting: str) -> None:
    key, value = setting.split("=")
    config = compose_config("train", ["+experiment=frcnn_r152_r50", setting])
    if key == "trainer":
        assert config.trainer.accelerator == "gpu"
        assert config.trainer.precision == "bf16-mixed"
    else:
        for name in key.split("."):
            config = config[name]
        assert str(config).lower() == value


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (CHECKOUT / "Makefile").read_text(), re.M)
        return
    if program == "python":
        assert (CHECKOUT / words.pop(0)).is_file()
    else:
        assert program == "defeat-train"
    sweep = "-m" in words
    words = [word.split(",")[0] if sweep else word for word in words if word != "-m"]
    # Of a sweep, the first job's.
    compose_config("train", [re.sub(r"range\((\d+)$", r"\1", word) for word in words])
