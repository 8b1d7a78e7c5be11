"""docs/scaling.md: what it shows is shell, and every command of it composes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from defeat.config import conf_dir

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.M | re.S)
START = r"(?:defeat-train|-m defeat\.cli\.train)"
COMMANDS = [
    command
    for block in BLOCKS
    for command in re.findall(rf"{START} (.*?)(?:[;#&]|$)", block.replace("\\\n", ""), re.M)
]


def first_value(word: str) -> str:
    """Of a sweep, the first job's; of a loop, the first round's."""
    return word.split(",")[0].replace("$seed", "0")


def test_every_command_is_found() -> None:
    assert len(COMMANDS) == sum(len(re.findall(START, block)) for block in BLOCKS) >= 12


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_shell(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    words = [first_value(word) for word in shlex.split(command) if word not in ("...", "-m")]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=words, return_hydra_config=True)
    trainer, launcher, data = config.trainer, config.hydra.launcher, config.data
    if "SlurmLauncher" in launcher._target_ and trainer.num_nodes > 1:
        assert (launcher.nodes, launcher.tasks_per_node) == (trainer.num_nodes, trainer.devices)
    if "batch_size" in command and isinstance(trainer.devices, int):
        assert data.batch_size * trainer.devices * trainer.num_nodes == 16  # the recipe's
