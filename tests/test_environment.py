"""What a config takes from the environment is used, and stored by its variable's name; a text is not taken at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench
from openai_server import OpenAIServer

from rambla_ray.config.load import load
from rambla_ray.errors import UserError
from rambla_ray.results.directory import RunDirectory
from rambla_ray.schema import canonical_json

CANARY = "zqcanary-771-abcdef"  # What is in MY_THING, which no list of names calls a secret.


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "MY_THING": CANARY,
        "SHARE": "0.25",
        "N": "3",
        "FLAG": "true",
        "CHOICE": "constant",
        "MODEL": "mock",
        "DEPLOYMENT": "zq-deployment-7",
        "PLACE": "/zq/place",
        "OPENAI_API_KEY": "sk-test",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("OPENAI_API_BASE", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)


def at(document: Any, place: str) -> Any:
    for key in place.split("."):
        document = document[key]
    return document


@pytest.mark.parametrize(
    ("word", "place", "value", "written"),
    [
        ("model.params.flip=${oc.env:SHARE}", "targets.mock.params.flip", 0.25, "${oc.env:SHARE}"),
        ("model.params.flip=${oc.decode:${oc.env:SHARE}}", "targets.mock.params.flip", 0.25, "${oc.env:SHARE}"),
        ("model.params.flip=0.${oc.env:N}", "targets.mock.params.flip", 0.3, "${oc.env:N}"),
        ("model.params.seed=${oc.env:N}${oc.env:N}", "targets.mock.params.seed", 33, "${oc.env:N}"),
        ("model.params={seed: '${oc.env:N}'}", "targets.mock.params.seed", 3, "${oc.env:N}"),
        (
            "model.params={flip: '${.word_s}', word_s: '${oc.env:SHARE}'}",
            "targets.mock.params.flip",
            0.25,
            "${oc.env:SHARE}",
        ),
        ("model.params.behaviour=${oc.env:CHOICE}", "targets.mock.params.behaviour", "constant", "${oc.env:CHOICE}"),
        ("limit=${oc.env:N}", "options.limit", 3, "${oc.env:N}"),
        ("limit=${oc.env:N}", "datasets.pubmedqa_yesno.limit", 3, "${oc.env:N}"),
        ("task.dataset.limit=${oc.env:N}", "datasets.pubmedqa_yesno.limit", 3, "${oc.env:N}"),
        ("verbose=${oc.env:FLAG}", "options.verbose", True, "${oc.env:FLAG}"),
        ("pool.max_size=${oc.env:N}", "targets.mock.pool.max_size", 3, "${oc.env:N}"),
        ("budget.usd=${oc.env:N}", "options.budget.usd", 3.0, "${oc.env:N}"),
        ("model.params.seed=${oc.env:NOT_SET,5}", "targets.mock.params.seed", 5, 5),
        ("runs_dir=${oc.env:PLACE}/runs", "options.runs_dir", "/zq/place/runs", "/zq/place/runs"),
        ("task.dataset.path=${oc.env:PLACE}.json", "datasets.pubmedqa_yesno.path", "/zq/place.json", "/zq/place.json"),
        ("roles.judge=${oc.env:MODEL}", "options.roles.judge", "mock", "mock"),
        ("model=['${oc.env:MODEL}']", "options.model", ["mock"], ["mock"]),
    ],
)
def test_a_value_is_used_and_stored_by_name(word: str, place: str, value: object, written: object) -> None:
    config = load(["model=mock", word])
    assert at(config.model_dump(mode="json"), place) == value
    assert at(config.stored(), place) == written


ENGINE = ["model=openai_chat", "model.params.engine=${oc.env:DEPLOYMENT}"]


def test_an_engine_is_used_and_its_name_stored() -> None:
    config = load(ENGINE)
    assert config.targets["openai_chat"].params.model_dump()["engine"] == "zq-deployment-7"
    assert config.label("openai_chat") == "openai_chat[engine=$DEPLOYMENT]"
    assert config.run_id.startswith("openai_chat-engine_DEPLOYMENT-")
    assert "zq-deployment-7" not in canonical_json([config.stored(), config.question(), config.changes])


@pytest.mark.parametrize("words", [ENGINE, ["model=mock", "model.params.seed=${oc.env:N}"]])
def test_another_value_is_another_run(words: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = [*words, f"runs_dir={tmp_path}", "run_id=ours"]
    before = load(words).run_id
    RunDirectory.create(load(ours)).begin(load(ours), {}, ours)
    assert load(words).run_id == before
    RunDirectory.create(load(ours))  # It is the same run.
    monkeypatch.setenv("DEPLOYMENT", "zq-deployment-8")
    monkeypatch.setenv("N", "4")
    assert load(words).run_id != before
    with pytest.raises(UserError, match=r"these keys differ: environment\.targets\.\w+\.params\.(engine|seed)"):
        RunDirectory.create(load(ours))
    assert b"zq-deployment" not in (tmp_path / "ours" / "config.yaml").read_bytes()


def test_a_run_without_variables_has_the_name_that_it_always_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FT_PATH", "/x/llama")
    monkeypatch.setenv("DATASET_STORAGE_PATH", "/data")
    assert load(["model=mock"]).run_id == "mock-mcqabaseline-ddb66bb3"
    words = ["model=llama_ft", "task=similarity_long_form_qa_bioasq"]
    assert load(words).run_id == "llama_ft-similarity_long_form_qa_bioasq-6f1fd13a"


WHERE_TEXTS_GO = [
    "model.params.answer=${oc.env:MY_THING}",
    "model.params.answer=is ${oc.env:MY_THING} it",
    "model.params={answer: '${oc.env:MY_THING}'}",
    "model.params={behaviour: constant, answer: '${oc.env:SHARE}-${oc.env:MY_THING}'}",
    "run_id=${oc.env:MY_THING}",
    "task.pair_with=${oc.env:MY_THING}",
    "task.dataset.keep={final_decision: ['${oc.env:MY_THING}']}",
    "task.dataset.keep={path: ['${oc.env:MY_THING}']}",
    "task.dataset.subset=${oc.env:MY_THING}",
    "reader.template='{choices} {answer} ${oc.env:MY_THING}'",
]
WHERE_NO_TEXT_GOES = [
    *("model.params.flip=${oc.env:MY_THING}", "model.params.flip=${oc.decode:${oc.env:MY_THING}}"),
    *("limit=${oc.env:MY_THING}", "data=${oc.env:MY_THING}", "verbose=${oc.env:MY_THING}", "seed=${oc.env:MY_THING}"),
    *("model=${oc.env:MY_THING}", "task=${oc.env:MY_THING}", "roles.judge=${oc.env:MY_THING}"),
    *("budget=${oc.env:MY_THING}", "pool.max_size=${oc.env:MY_THING}", "task.answer.expect=${oc.env:MY_THING}"),
    *("model.params.answer=${oc.env:${oc.env:MY_THING}}", "model.params.nothing=${oc.env:MY_THING}"),
    *("model.params.answer=${oc.decode:'[${oc.env:MY_THING}'}", "model.params.answer=${${oc.env:MY_THING}}"),
    *("model.name=${oc.env:MY_THING}", "files_mode=${oc.env:MY_THING}", "task.dataset.format=${oc.env:MY_THING}"),
]


@pytest.mark.parametrize("word", WHERE_TEXTS_GO)
def test_a_text_is_refused_by_name(word: str, bench: Callable[[Sequence[str]], Bench]) -> None:
    done = bench(["model=mock", word])
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert "${oc.env:MY_THING} is a text, which would be stored with the run: write it into the config" in done.err
    assert CANARY not in done.err
    assert not done.runs_dir.exists()


@pytest.mark.parametrize("word", WHERE_NO_TEXT_GOES)
def test_what_is_wrong_with_a_value_is_said_without_it(word: str, bench: Callable[[Sequence[str]], Bench]) -> None:
    done = bench(["model=mock", word])
    assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
    assert CANARY not in done.err


@pytest.mark.parametrize("word", ["model.params.base_url=${oc.env:MY_THING}", "model.params.api_key_var=${oc.env:N}"])
def test_an_endpoint_that_is_none_is_not_shown(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["model=openai_chat", word], ["model=openai_chat"]):
        with pytest.raises(UserError) as refused:
            load(words)
        assert CANARY not in str(refused.value)
        monkeypatch.setenv("OPENAI_API_BASE", CANARY)  # It is wrong as well, and not shown either.


@pytest.mark.parametrize("group", ["model", "task", "dataset"])
def test_the_same_holds_in_files(group: str, tmp_path: Path) -> None:
    texts = {
        "model": "name: mock\nparams: {behaviour: constant, answer: '${oc.env:MY_THING}'}\n",
        "task": "dataset: pubmedqa_yesno\n"
        "stages:\n- generate: {role: target, template: '{question} ${oc.env:MY_THING}'}\n"
        "answer: {choices: ['yes', 'no'], target: final_decision}\n",
        "dataset": "format: pubmedqa\npath: x\ndemo: pubmedqa.json\nkeep: {final_decision: ['${oc.env:MY_THING}']}\n",
    }
    (tmp_path / group).mkdir()
    name = "pubmedqa_yesno" if group == "dataset" else "mine"
    (tmp_path / group / f"{name}.yaml").write_text(texts[group])
    with pytest.raises(UserError, match=rf"^{group} {name} \({name}\.yaml\): .*MY_THING}} is a text") as refused:
        load(["model=mock", f"conf_dir={tmp_path}", *([f"{group}={name}"] if group != "dataset" else [])])
    assert CANARY not in str(refused.value)


def test_a_run_with_an_engine_by_name_keeps_its_value_to_itself(
    bench: Callable[[Sequence[str]], Bench], ray_cluster: None
) -> None:
    """The endpoint is sent the value, and says it back in an error."""
    from faults import Fault

    body = b'{"error": {"message": "no zq-deployment-7 here", "code": "x"}}'
    with OpenAIServer(faults=[Fault("reply", status=400, body=body, match="diabet", times=-1)]) as server:
        words = [*ENGINE, f"model.params.base_url={server.base_url}", "fail_if.failed_above=1", "limit=${oc.env:N}"]
        done = bench([*words, "task.dataset.limit=20", "limit=20"])
        assert {request.model for request in server.requests} == {"zq-deployment-7"}
    assert done.status == 0, done.err
    assert "no ${oc.env:DEPLOYMENT} here" in done.read("errors.jsonl")
    assert "${oc.env:DEPLOYMENT}" in done.read("env.json")
    left = [path for path in done.runs_dir.rglob("*") if path.is_file() and b"zq-deployment-7" in path.read_bytes()]
    assert left == []
    assert "zq-deployment-7" not in done.out + done.err
