"""Names and paths on the command line: read as they are meant, or one line that says how to write them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from unicodedata import normalize

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from defeat.cli.overrides import NAMES, in_order, quote_texts, unreadable
from defeat.config import compose_config, expand_paths, spelled
from defeat.errors import ConfigError
from defeat.evaluation import check_backend
from tests.helpers.console import Run

ODD = [
    "2024", "1e3", "2024_01", "true", "a=b", "my data ", "data(1)", "köln", "e\u0301", "100%", "a#1", "it's",
    '"q"', "a\\b", "a\\", "[x", "{b}", "$x", "a,b=c", "~/x", "行人", "`ls`", "a!b",
]  # fmt: skip


def read(word: str) -> object:
    return OverridesParser.create().parse_override(word).value()


@pytest.mark.parametrize("value", [value for value in ODD if value not in ("{b}", '"q"')])
@pytest.mark.parametrize("key", ["name", "+data.root", "hydra.run.dir"])
def test_texts_are_read_as_they_stand(key: str, value: str) -> None:
    (word,) = quote_texts([f"{key}={value}"])
    assert read(word) == value
    assert quote_texts([word]) == [word]


@pytest.mark.parametrize(
    "word",
    [
        *("name=null", "name='2024'", "name=", "name=a,b", "name=choice(a,b)", "ckpt_path=last", "seed=3"),
        *("data.root=[a,b]", "data.train.roots=[a b]", "run_dir=${output_root}/x", "trainer.max_steps=a=b"),
        *("--help", "foo", "teacher=true", "teacher=false"),
    ],
)
def test_other_words_stay(word: str) -> None:
    assert quote_texts([word]) == [word]


@pytest.mark.parametrize(
    "value",
    ["{'traffic light': 'stop sign', \"a, b\": 3}", "{münze: coin}", '{"traffic light":"stop sign"}'],
)
def test_a_map_of_classes_is_written_with_names_in_quotes(value: str) -> None:
    (word,) = quote_texts([f"teacher.class_map={value}"])
    assert read(word) == value
    assert quote_texts(["teacher.class_map={a b: c, d: 3}"]) == ["teacher.class_map={a b: c, d: 3}"]


def test_a_sweep_over_texts_stays_one() -> None:
    assert quote_texts(["-m", "data.root=a=1,b=2"]) == ["-m", "data.root=a=1,b=2"]


@pytest.mark.parametrize("value", ODD)
def test_the_spelling_can_be_copied_into_a_shell(value: str) -> None:
    (word,) = shlex.split(spelled("data.root", value))
    assert read(word) == value


@pytest.mark.parametrize("word", ["foo.bar=a=b", "+foo=köln(", "foo=[1", "foo.x=it's", "foo=a#b"])
def test_words_that_cannot_be_read_are_spelled(word: str) -> None:
    message = unreadable(word)
    copied = re.search(r"write (.*?)(; a list is written \[a,b\])?$", message)
    assert copied, message
    (spelling,) = shlex.split(copied[1])
    assert read(spelling) == word.partition("=")[2]


def test_home_and_forms_of_accents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    apart, composed = (normalize(form, "épreuve") for form in ("NFD", "NFC"))
    (tmp_path / apart).mkdir()
    nodes = {
        "a": "~/x",
        "b": ["~", "a~/x", "~nobody-is-called-so/x"],
        "c": composed,
        "d": "née",
        "e": "${a}",
        "f": "???",
    }
    config = expand_paths(OmegaConf.create(nodes))
    home = str(tmp_path / "home")
    assert [config.a, *config.b] == [f"{home}/x", home, "a~/x", "~nobody-is-called-so/x"]
    assert (config.c, config.d, config.e) == (apart, "née", f"{home}/x")
    assert compose_config("train", ["data.root='~/coco'", "run_dir=."]).data.root == f"{home}/coco"


def test_engines_are_refused_before_they_are_imported() -> None:
    assert all(check_backend(name) for name in NAMES["evaluation.backend"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["data.root=x,y"], ["-m", "data.root=[x,y]", "\"data.root='x,y'\""]),
        (
            ["data.root=x", "evaluation.backend=wrong"],
            ["evaluation.backend=wrong is none of faster_coco_eval, pycocotools"],
        ),
        (["distiller=null"], ["distiller=null is no choice of distiller: ~distiller leaves it out"]),
        (["data.root=x", "name=a::b"], ["a::b", "'::'"]),
        (["data.root=x", "name='a\x1bb'"], [r"a\x1bb", "prints"]),
        (
            ["data.root=x", r"optim.lr_schedule._target_='\${oc.env:HOME}'"],
            ["optim.lr_schedule._target_", "${"],
        ),
    ],
)
def test_what_is_told_of_them(words: list[str], parts: list[str], script: Run) -> None:
    line = script("defeat-train", *words).line
    assert [part for part in parts if part not in line] == [], line


def test_types_are_checked_in_a_configuration_of_the_users_own(tmp_path: Path, script: Run) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nseed: abc\n")
    line = script("defeat-train", "--config-dir", str(tmp_path), "--config-name", "mine", "data.root=x").line
    assert line.startswith("seed must be a whole number, got ")
    assert not any(path.is_dir() for path in tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("+experiment=a -m seed=1,2", "+experiment=a seed=1,2 -m"),
        ("--cfg job name=a --resolve seed=1", "name=a seed=1 --cfg job --resolve"),
        ("--config-dir=x name=a", "name=a --config-dir=x"),
        ("name=a --help-all", "name=a --help"),
    ],
)
def test_options_may_stand_anywhere(words: str, ordered: str) -> None:
    assert in_order(words.split()) == ordered.split()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--experiment x", r"written without dashes, \+experiment=x"),
        ("--data-root=x", "written without dashes, data_root=x"),
        ("-m --cfg job", "-m and --cfg do not go together"),
    ],
)
def test_words_that_are_no_options_are_told(words: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        in_order(words.split())
