"""Words of the command line: a value is what was typed, unless its key takes something else."""

from __future__ import annotations

from pathlib import Path

import config_files
import pytest
from config_files import loaded

from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.load import load_served
from rambla_ray.config.words import read_value, type_at
from rambla_ray.results.directory import RunDirectory

no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

# Texts that YAML, or a grammar on top of it, would cut, change or refuse.
TEXTS = [
    "/data/set #3",
    "#3",
    "a: b",
    "key:",
    "yes",
    "No",
    "off",
    "true",
    "1e3",
    "0123",
    "0x1F",
    "1_000",
    "12:30:45",
    "2024-01-01",
    "3.0",
    "nan",
    ".inf",
    "~",
    "~/set",
    "!tag x",
    "&a x",
    "*a",
    "@x",
    "`x`",
    "%x",
    "|",
    "> x",
    "- x",
    "? x",
    ",",
    "{question}",
    "{a} and {b}",
    "[INST] {message} [/INST]",
    "[",
    "a=b=c",
    "=",
    " x ",
    "it's",
    "'x",
    '"a" or "b"',
    "one\ntwo: 2",
    "C:\\data\\set",
    "$HOME",
    "café 答案",
    "???",
    "nil",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("runs_dir", "options.runs_dir"),
        ("ledger", "options.ledger"),  # It may be null.
        ("address", "options.address"),
        ("task.dataset.path", "datasets.pubmedqa_yesno.path"),
        ("model.params.answer", "targets.mock.params.answer"),
    ],
)
def test_a_text_is_what_was_typed(key: str, place: str, text: str) -> None:
    assert value_at(place, f"{key}={text}") == text


@pytest.mark.parametrize(
    "prompt",
    [
        "Answer yes or no: {question} #3",
        "{context}\n{question}",
        "[INST] {question} [/INST]",
        "{question}: yes",
        "'{question}",
        "1. {question}",
    ],
)
def test_a_prompt_in_the_list_of_stages_is_what_was_typed(prompt: str) -> None:
    (stage,) = loaded(f"task.stages.0.generate.template={prompt}").tasks["mcqabaseline"].generates
    assert stage.template == prompt


@pytest.mark.parametrize(
    ("word", "place", "value"),
    [
        # None
        ("ledger=null", "options.ledger", None),
        ("ledger=NULL", "options.ledger", None),
        ("ledger=", "options.ledger", None),
        ("limit=null", "options.limit", None),
        ("pool.max_size=", "targets.mock.pool.max_size", None),
        # Quotes
        ('ledger="null"', "options.ledger", "null"),
        ("ledger='/a #b'", "options.ledger", "/a #b"),
        ('ledger="a\\tb"', "options.ledger", "a\tb"),
        ("ledger=''", "options.ledger", ""),
        ('limit="7"', "options.limit", 7),
        # Numbers and truth values, where the key takes them
        ("limit=7", "options.limit", 7),
        ("limit=1e3", "options.limit", 1000),
        ("limit=1_000", "options.limit", 1000),
        ("limit=0123", "options.limit", 123),
        ("limit= 7", "options.limit", 7),
        ("limit=7\r", "options.limit", 7),
        ("model.params.flip=.5", "targets.mock.params.flip", 0.5),
        ("model.params.flip=1E-2", "targets.mock.params.flip", 0.01),
        ("pool.batch_size=8", "targets.mock.pool.batch_size", 8),
        ("pool.batch_size=auto", "targets.mock.pool.batch_size", "auto"),
        ("verbose=yes", "options.verbose", True),
        ("verbose=True", "options.verbose", True),
        ("verbose=0", "options.verbose", False),
        # Mappings and lists
        ("chaos={http429: 0.5, reset: 0.1}", "options.chaos.reset", 0.1),
        ("roles={judge: mock}", "options.roles.judge", "mock"),
        ("task.dataset.keep.final_decision=['yes']", "datasets.pubmedqa_yesno.keep.final_decision", ["yes"]),
        ("model=[mock]", "options.model", ("mock",)),
        # Names
        ("model=mock", "options.model", ("mock",)),
        ("model=mock,", "options.model", ("mock",)),
        ("model=mock, mock", "options.model", ("mock", "mock")),
        ("run_id=2024", "options.run_id", "2024"),
        ("run_id=1e3", "options.run_id", "1e3"),
        ("run_id=mock\r", "options.run_id", "mock"),
        ("roles.judge=mock", "options.roles.judge", "mock"),
        # Interpolation
        ("ledger=${oc.env:PLACE}/a #b", "options.ledger", "/x: y/a #b"),
        ("model.params.flip=${oc.env:SHARE}", "targets.mock.params.flip", 0.25),
        ("ledger=\\${PLACE}", "options.ledger", "${PLACE}"),
    ],
)
def test_a_value_is_of_its_keys_type(word: str, place: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/x: y")
    monkeypatch.setenv("SHARE", "0.25")
    assert value_at(place, word) == value


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("null", None),
        ("yes", "yes"),
        ("0123", "0123"),
        ("1e999", "1e999"),
        ("a #b", "a #b"),
        ("~", "~"),
        ("[1, yes]", [1, True]),
        ("{a: {b: null}}", {"a": {"b": None}}),
        ('"5"', "5"),
    ],
)
def test_where_a_key_takes_anything_numbers_and_truth_values_are_read(word: str, value: object) -> None:
    read = read_value(word, type_at(HuggingFaceParams, ["generation_config", "sequence_bias", "x"]))
    assert (read, type(read)) == (value, type(value))


def test_the_options_of_generation_are_read_so() -> None:
    words = [f"model.params.generation_config.{word}" for word in ("max_new_tokens=5", "do_sample=true", "top_p=.5")]
    params = loaded("model=smollm2", *words).targets["smollm2"].params
    assert params.generation_config == {"max_new_tokens": 5, "do_sample": True, "top_p": 0.5}


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("host=::1", "host", "::1"),
        ("host=0", "host", "0"),
        ("port=0", "port", 0),
        ("request_timeout_s=2.5", "request_timeout_s", 2.5),
        ("address=a: b #c", "address", "a: b #c"),
        ("model=mock, mock", "model", ("mock", "mock")),
    ],
)
def test_the_words_of_serving_are_read_the_same(word: str, key: str, value: object) -> None:
    assert getattr(load_served(["model=mock", word]).options, key) == value


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("name: mock")
    assert list(loaded("conf_dir=~/conf", "model=own").targets) == ["own"]


def value_at(place: str, *words: str) -> object:
    value: object = loaded(*words)
    for part in place.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.mark.parametrize("text", [*TEXTS, "${x", "costs ${5", "-1E5", "\x00\x85\u2028"])
def test_a_run_directory_holds_what_was_typed(text: str, tmp_path: Path) -> None:
    escaped = text.replace("${", "\\${")
    words = [f"model.params.answer={escaped}", f"runs_dir={tmp_path}", "limit=1"]
    config = loaded(*words)
    directory = RunDirectory.create(config)
    directory.begin(config, {}, words)
    document = RunDirectory.create(config).read_config()  # which compares it with what it holds
    assert document is not None
    assert document["command"] == words
    assert document["question"] == config.question()
    assert document["question"]["targets"]["mock"]["params"]["answer"] == text
