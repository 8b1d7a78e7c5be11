"""README.md and docs/: bash runs their commands with nothing behind them, and what they call is looked at."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig

from defeat.cli.report import _parser
from defeat.config import conf_dir
from tests.helpers.tools import load_tool

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HYDRA = {
    "defeat-train": "train",
    "defeat-eval": "eval",
    "defeat-predict": "predict",
    "defeat-export": "export",
    "defeat-demo": "demo",
    "defeat-import": "import",
}
FLAGS = {
    *("-m", "--multirun", "--help", "--help-all", "--version", "--cfg", "job", "--resolve"),
    *("-sc", "install=bash", "install=fish", "..."),
}
REST = {"git", "nvidia-cuda-mps-control", "pip", "pre-commit", "scontrol", "tensorboard"}
"""Programs whose words are not looked at."""

STAND_IN = "command_not_found_handle() { local IFS=$'\\x1f'; printf '%s\\n' \"$*\"; }\n"
"""No program is on the PATH below, and bash hands the words of a missing one to this function."""


def run_block(block: str) -> list[list[str]]:
    """Run shell with stand-ins for all programs, and return the words of each call.

    bash is restricted (-r): it starts no program by its path, and writes no file.
    """
    code = STAND_IN + re.sub(r"<[^<>\n]+>", "given", block)
    bash = shutil.which("bash") or "bash"
    done = subprocess.run(
        [bash, "-r", "-c", code], env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert done.stderr == "", block
    return [line.split("\x1f") for line in done.stdout.splitlines()]


def commands() -> list[str]:
    """All calls of all pages, each once, as words that \\x1f separates; bash needs milliseconds a block."""
    blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks += re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
        if page.name != "CHANGELOG.md":  # which speaks of what was, and of keys alone
            prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
            blocks += re.findall(r"(?<!`)`((?:defeat-\w+|make|python|tensorboard) [^`|]+)[`|](?!`)", prose)
    return list(dict.fromkeys("\x1f".join(words) for block in blocks for words in run_block(block)))


def first_job(word: str) -> str:
    """The first value where a word sweeps over several."""
    (override,) = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        return word
    value = override.value()
    if isinstance(value, Glob):
        names = [path.stem for path in (conf_dir() / override.key_or_group).glob("*.yaml")]
        return f"{override.input_line.partition('=')[0]}={value.filter(names)[0]}"
    return f"{override.input_line.partition('=')[0]}={next(override.sweep_string_iterator())}"


def composed(name: str, words: list[str]) -> DictConfig:
    words = [first_job(word) for word in words if word not in FLAGS]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(name, overrides=words, return_hydra_config=True)


def check_processes(config: DictConfig, words: list[str]) -> None:
    """The launcher starts the processes that the trainer expects, and a step has the paper's 16 images."""
    trainer, launcher = config.trainer, config.hydra.launcher
    if "SlurmLauncher" in launcher._target_ and trainer.num_nodes > 1:
        assert (launcher.nodes, launcher.tasks_per_node) == (trainer.num_nodes, trainer.devices)
    recipe = config.optim.optimizer._target_.endswith("SGD") and isinstance(trainer.devices, int)
    if any(word.startswith("data.batch_size") for word in words) and recipe:
        assert config.data.batch_size * trainer.devices * trainer.num_nodes == 16


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.replace("\x1f", " "))
def test_a_command_can_be_typed_as_it_stands(command: str) -> None:
    program, *words = command.split("\x1f")
    if program in ("torchrun", "srun"):  # what they start
        start = next(i for i, word in enumerate(words) if word in ("defeat.cli.train", "defeat-train"))
        program, words = "defeat-train", words[start + 1 :]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
        if words[0] in ("evidence", "evidence-real"):
            given = dict(word.split("=", 1) for word in words[1:])
            table = given.get("TABLE", "bccd") if words[0] == "evidence-real" else "scenes"
            load_tool("evidence").main([table, *shlex.split(given.get("ARGS", "")), "--dry-run"])
    elif program == "python" and words[0] == "tools/evidence.py":
        load_tool("evidence").main([*words[1:], "--dry-run"])
    elif program == "python":
        assert (ROOT / words[0]).is_file()
        if words[0].startswith("benchmarks/"):
            composed("train", words[1:])
    elif program == "defeat-report":
        _parser().parse_args(words)
    elif program == "defeat-data":
        composed(f"data_{words[0]}", [*(f"data.root={root}" for root in words[1:2]), *words[2:]])
    elif program in HYDRA:
        if not any(
            word.startswith("--config-dir") for word in words
        ):  # tests/test_adding_a_method.py runs it
            config = composed(HYDRA[program], words)
            if program == "defeat-train":
                check_processes(config, words)
    else:
        assert program in REST


def test_no_page_is_left_out() -> None:
    called = {command.partition("\x1f")[0] for command in commands()}
    assert called >= {"defeat-train", "defeat-eval", "defeat-report", "make", "torchrun", "srun"}


SETTINGS = re.findall(
    r"^\| `([^`]+=[^`]+)` \|",
    (ROOT / "docs" / "performance.md").read_text().partition("\n## Settings for a GPU\n")[2],
    re.M,
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_for_a_gpu_compose(setting: str) -> None:
    key, value = setting.split("=")
    config = composed("train", ["+experiment=frcnn_r152_r50", setting])
    if key == "trainer":
        assert (config.trainer.accelerator, config.trainer.precision) == ("gpu", "bf16-mixed")
    else:
        for name in key.split("."):
            config = config[name]
        assert str(config).lower() == value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        assert not link or "://" in link or (page.parent / link).exists(), link
