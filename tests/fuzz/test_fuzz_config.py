"""Command lines with anything wrong: everything that they configure is built, or one line says why not."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from defeat.cli.error_messages import explain
from defeat.cli.overrides import check_choices, check_types
from defeat.config import compose_config
from tests.helpers.distillation import build_all, distillation
from tests.helpers.trials import Tally, sizes, try_inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on odd settings

VALUES = (
    "0", "1", "-1", "2", "0.5", "1e400", "-1e-9", "nan", "inf", "9223372036854775808", "1_0", "null", "true",
    "false", "abc", "''", "'a b'", "[]", "[1]", "[1,2]", "[a,null]", "[[1]]", "{}", "{a:1}", "{_target_:x}",
    "${seed}", "${nope}", "${oc.env:NOPE}", "${}", "a/b", "../x", "/dev/zero", "1,2", "é", "\\x00", "'\n'",
    "defeat.nope", "torch.nn.ReLU", "raise", "skip", "auto", "cpu", "frozen", "resnet18", "teacher", "last",
)  # fmt: skip
"""No value that would rightly take much memory or time: this asks about mistakes."""

PREFIXES = ("", "", "", "", "+", "++", "~")
NOISE = ("", "", "", "", ".x", "s", " ", "[0]", ".", "@", "=", "\n")
GROUPS = (
    "preflight",
    "measure",
    "data",
    "optim",
    "trainer",
    "logger",
    "callbacks",
    "distiller",
    "detector@student",
    "detector@teacher",
)
CHOICES = (
    "coco",
    "voc0712",
    "sgd_1x",
    "adamw",
    "ddp",
    "default",
    "neck",
    "fgfi",
    "pkd",
    "fcos_r18",
    "nope",
    "null",
)
KEYS_APART = ("run_dir", "output_root", "name", "data.root", "data.num_workers")
"""Paths that would be written to, and processes that would be started."""


class Word(NamedTuple):
    key: int
    prefix: str
    noise: str
    value: str


class Case(NamedTuple):
    words: list[Word]
    choices: list[tuple[str, str]]


cases = st.builds(
    Case,
    st.lists(
        st.builds(
            Word,
            st.integers(0, 10**4),
            st.sampled_from(PREFIXES),
            st.sampled_from(NOISE),
            st.sampled_from(VALUES),
        ),
        min_size=1,
        max_size=2,
    ),
    st.just([])
    | st.just([])
    | st.lists(st.tuples(st.sampled_from(GROUPS), st.sampled_from(CHOICES)), min_size=1, max_size=1),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return distillation(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def keys(base: list[str]) -> list[str]:
    """Every key of that configuration, groups too."""
    found: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for name in node:
            key = f"{prefix}{name}"
            found.append(key)
            if not OmegaConf.is_interpolation(node, name) and isinstance(node[name], DictConfig):
                walk(node[name], f"{key}.")

    walk(compose_config("train", base), "")
    return [key for key in found if key not in KEYS_APART]


def outcome(words: list[str], chosen: list[str]) -> str:
    """What comes of a command line, ``chosen`` without its keys: all is built, or one line says why not."""
    try:
        check_choices(words)
        config = compose_config("train", words)
        check_types(config, compose_config("train", chosen))
        build_all(config)
    except Exception as error:
        line = explain(error, "train", words)
        assert line is not None, "".join(traceback.format_exception(error))[-3000:]  # noqa: PT017 - not what is expected
        assert line.isprintable()
        return f"refused: {line}"
    return "built"


@pytest.mark.parametrize(
    "word",
    [
        "distiller.schedule._partial_=1",
        "data=3",
        "preflight=[a,null]",
        "++data.x='a\nb\x1b[31m'",
        "student.model.aspect_ratios.x=1",
        "data.val=teacher",
        "data.train.annotation_file=true",
        "optim.optimizer.weight_decay={}",
        "teacher.weights=5",
    ],
)
def test_words_that_once_ended_in_a_traceback(
    word: str, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert outcome([*base, word], base).startswith("refused: ")


@sizes(quick=6, full=200)
def test_changed_command_lines(
    examples: int,
    base: list[str],
    keys: list[str],
    tally: Tally,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def check(case: Case) -> str:
        chosen = [*base, *(f"{group}={choice}" for group, choice in case.choices)]
        words = chosen + [
            f"{word.prefix}{keys[word.key % len(keys)]}{word.noise}={word.value}" for word in case.words
        ]
        return outcome(words, chosen)

    try_inputs("command lines", cases, check, examples, tally)
