"""Numbers of all configs: finite, bounded on both sides, and no truth values; and truth values are no numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import config_files
import pytest
from config_files import OPENAI, loaded, refusal
from pydantic import ValidationError

from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.model import ModelConfig, ModelParams
from rambla_ray.config.run import RunConfig
from rambla_ray.config.served import ServeConfig
from rambla_ray.registry import MODEL_MAP, model_class
from rambla_ray.tasks.closed import Closed, options_of
from rambla_ray.tasks.stages import STAGES

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

CHECKED_FROM_BELOW = {"batch_size"}  # A validator of its own refuses what is below 1.
ENDLESS = ["1e999", "inf", "-inf", "nan", ".inf", ".nan", "Infinity", "9" * 5000]


def sections() -> list[type[Closed]]:
    """Every section of every config of this package."""
    found: list[type[Closed]] = []
    waiting: list[type[Closed]] = [Closed]
    assert all(map(model_class, MODEL_MAP))  # They are imported by now.
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("rambla_ray.") and kind not in (Closed, *found):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


SECTIONS = sections()


def types_in(kind: Any) -> Iterator[Any]:
    """A type and those that it is made of."""
    for option in options_of(kind):
        yield option
        if get_origin(option) in (list, tuple, dict):
            for part in get_args(option):
                yield from types_in(part)


def fields_of(wanted: type) -> list[Any]:
    return [
        pytest.param(section, name, id=f"{section.__name__}.{name}")
        for section in SECTIONS
        for name, field in section.model_fields.items()
        if wanted in options_of(field.annotation)
    ]


def test_the_sections_are_all_there() -> None:
    named = {model_class(name).Params for name in MODEL_MAP} | set(STAGES.values()) | {RunConfig, ServeConfig}
    assert named < set(SECTIONS)
    assert all(section.model_config["allow_inf_nan"] is False for section in SECTIONS)


def numbers_of(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number in a JSON schema, with where it stands."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"enum", "const"} & schema.keys():
            yield place, schema
        for key, inner in schema.items():
            yield from numbers_of(inner, f"{place}.{key}")
    elif isinstance(schema, list):
        for number, inner in enumerate(schema):
            yield from numbers_of(inner, f"{place}[{number}]")


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_number_is_bounded_on_both_sides(section: type[Closed]) -> None:
    if section in (RunConfig, ModelConfig) or inspect.isabstract(section):
        return  # Their parts are sections of their own.
    unbounded = [
        place
        for place, schema in numbers_of(section.model_json_schema())
        if not ({"minimum", "exclusiveMinimum"} & schema.keys() or place.split(".")[-2] in CHECKED_FROM_BELOW)
        or not {"maximum", "exclusiveMaximum"} & schema.keys()
    ]
    assert unbounded == []


def test_an_unbounded_number_would_be_found() -> None:
    class Careless(Closed):
        count: int | None = None
        counts: tuple[int, ...] = ()

    assert len(list(numbers_of(Careless.model_json_schema()))) == 2


def faults(section: type[Closed], name: str, value: Any) -> list[str]:
    """What is said about one key of a section."""
    with pytest.raises(ValidationError) as caught:
        section.model_validate({section.model_fields[name].alias or name: value})
    key = section.model_fields[name].alias or name
    return [error["msg"] for error in caught.value.errors() if error["loc"][0] == key]


@pytest.mark.parametrize(("section", "name"), [*fields_of(int), *fields_of(float)])
def test_no_number_is_true_or_false(section: type[Closed], name: str) -> None:
    if bool not in options_of(section.model_fields[name].annotation):
        assert any("a number, not true or false" in fault for fault in faults(section, name, True))


@pytest.mark.parametrize(("section", "name"), fields_of(bool))
@pytest.mark.parametrize("value", [0, 1, 2, 1.0, "perhaps", [True]])
def test_no_truth_value_is_a_number(section: type[Closed], name: str, value: Any) -> None:
    assert faults(section, name, value)


@pytest.mark.parametrize("word", ["seed", "limit", "pool.num_cpus", "rate.timeout_s", "chaos.reset", "budget.usd"])
@pytest.mark.parametrize("value", ENDLESS, ids=lambda value: value[:9])
def test_an_endless_number_is_refused(word: str, value: str) -> None:
    assert word.rpartition(".")[2] in refusal(f"{word}={value}")


@pytest.mark.parametrize(
    "word",
    [
        "limit=1000000000000000000000000000000",
        "limit=1e30",
        "seed=4294967296",
        "seed=1e300",
        "pool.min_size=1e9",
        "pool.max_size=99999999999",
        "pool.num_cpus=1e300",
        "pool.num_gpus=1e12",
        "pool.batch_size=1e12",
        "pool.max_concurrency=1e9",
        "rate.requests_per_minute=1e300",
        "rate.requests_per_minute=1e-300",
        "rate.tokens_per_minute=1e30",
        "rate.timeout_s=1e300",
        "rate.timeout_s=1e-300",
        "rate.give_up_after_s=1e300",
        "chaos.kill_actor_every=1e30",
        "chaos={http429: .inf}",
        "chaos={http429: true}",
        "budget.usd=1e300",
        "budget.usd=-1",
        "budget.tokens=1e300",
        "fail_if.coverage_below=1.5",
        "fail_if.failed_above=-0.1",
        "model.params.latency_s=1e9",
        "model.params.seed=1e300",
        "model.params.context_tokens=1e12",
        "task.dataset.limit=1e30",
        "task.dataset.seed=1e30",
        "task.stages=[{add_distractors: {n_contexts: 1000000000}}]",
        "task.stages=[{add_distractors: {n_contexts: 3, positions: [-1]}}]",
        "task.stages=[{add_distractors: {n_contexts: 3, positions: [true]}}]",
        "task.stages=[{mutate: {schedule: [1000000000000]}}]",
        "task.stages=[{mutate: {schedule: [true, 3]}}]",
        "task.stages=[{mutate: {seed: true}}]",
        "dry_run=2",
        "verbose=1.5",
        "doctor=perhaps",
    ],
)
def test_an_absurd_number_is_refused_and_its_key_is_named(word: str) -> None:
    message = refusal(word)
    assert word.split("=")[0].split(".")[-1] in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("max_new_tokens", [10**12, 0, -5, True, "200", 1.5, 2**70]),
        ("temperature", [float("inf"), float("nan"), -1.0, 1e300, True, "hot"]),
        ("top_p", [1.5, -0.1, float("nan")]),
        ("top_k", [10**12, 0.5, True]),
        ("num_beams", [0, 10**9]),
        ("do_sample", [1, 0, "false", "yes"]),
        ("repetition_penalty", [0.0, float("inf")]),
        ("sequence_bias", [{"a": float("inf")}, [float("nan")], {"a": [2**70]}]),
    ],
)
def test_options_of_generation_have_bounds(key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValidationError, match="generation_config"):
            HuggingFaceParams(model_name="x", generation_config={key: value})


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 200, "do_sample": False, "top_p": 1.0},
        {"max_new_tokens": 1_000_000, "do_sample": True, "temperature": 1, "top_k": -1, "min_p": 0.05},
        {"temperature": 0.0, "top_p": 0, "top_k": 0, "eos_token_id": [1, 2], "pad_token_id": None},
        {"num_beams": 4, "length_penalty": -0.5, "repetition_penalty": 1.2, "use_cache": True},
    ],
)
def test_what_people_write_is_taken(options: dict[str, Any]) -> None:
    assert HuggingFaceParams(model_name="x", generation_config=options).generation_config == options


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("limit: true", "limit"),
        ("limit: [5]", "limit"),
        ("seed: .inf", "seed"),
        ("seed: false", "seed"),
        ("dry_run: 1", "dry_run"),
        ("verbose: 2", "verbose"),
        ("runs_dir: 5", "runs_dir"),
        ("runs_dir: [a]", "runs_dir"),
        ("limit: 0x" + "f" * 5000, "limit"),
        ("budget: {tokens: true}", "budget.tokens"),
    ],
)
def test_a_file_is_as_strict_as_the_command_line(text: str, key: str, conf: Path) -> None:
    (conf / "config.yaml").write_text(text)
    assert f"{key}: " in refusal(f"conf_dir={conf}")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("  max_tokens: true", "params.max_tokens"),
        ("  max_tokens: 1000000000000", "params.max_tokens"),
        ("  top_p: .nan", "params.top_p"),
        ("price: {input_per_million: -1, output_per_million: 1}", "price.input_per_million"),
        ("price: {input_per_million: .inf, output_per_million: 1}", "price.input_per_million"),
        ("price: {input_per_million: 1, output_per_million: 1e300}", "price.output_per_million"),
        ("rate: {hedge: 1}", "rate.hedge"),
        ("pool: {batch_size: true}", "pool.batch_size"),
    ],
)
def test_the_file_of_a_model_is_as_strict(line: str, key: str, conf: Path) -> None:
    (conf / "model" / "absurd.yaml").write_text(f"{OPENAI}{line}\n")
    assert key in refusal(f"conf_dir={conf}", "model=absurd")


def test_a_params_class_of_others_is_as_strict() -> None:
    class Params(ModelParams):
        size: int = 1
        anything: dict[str, Any] = {}  # noqa: RUF012 - pydantic copies it

    for given in ({"size": True}, {"anything": {"a": [float("inf")]}}, {"anything": {"a": 2**65}}):
        with pytest.raises(ValidationError):
            Params.model_validate(given)
    assert Params.model_validate({"size": "5", "anything": {"a": True, "b": 2**63}}).size == 5


@pytest.mark.parametrize("size", ["1", "1e3", "1_000", "100000"])
def test_generous_values_pass(size: str) -> None:
    options = loaded(f"limit={size}", "seed=4294967295", "rate.timeout_s=3600", "budget.usd=1e6").options
    assert options.limit == int(float(size))
