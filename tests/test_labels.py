"""What a model is called: its config's name, and what the command line changed of it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_samples import many, spec, store, task_spec
from omegaconf import OmegaConf

from rambla_ray.config import labels
from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.ledger.store import has_records_of
from rambla_ray.results import report
from rambla_ray.results.directory import RunDirectory
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.placement import levels_of
from rambla_ray.run.plan import Plan
from rambla_ray.schema import canonical_json
from rambla_ray.storage import Folder

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")  # A Name, which is a folder's.


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_VERSION", "OPENAI_API_BASE", "OPENAI_API_KEY", "LLAMA_FT_PATH"):
        monkeypatch.delenv(name, raising=False)


def loaded(*words: str) -> RunConfig:
    return load(["task=mcqabaseline", *words])


PARAMS = "model.params."
GENERATION = f"{PARAMS}generation_config"


@pytest.mark.parametrize(
    ("words", "label", "in_run_id"),
    [
        (["model=mock"], "mock", "mock"),
        (["model=mock", f"{PARAMS}flip=0.25"], "mock[flip=0.25]", "mock-flip_0.25"),
        (["model=openai_chat", f"{PARAMS}temperature=0.2"], "openai_chat[temperature=0.2]", None),
        (
            ["model=openai_chat", f"{PARAMS}engine=gpt-4.1"],
            "openai_chat[engine=gpt-4.1]",
            "openai_chat-engine_gpt-4.1",
        ),
        (
            ["model=openai_chat", f"{PARAMS}temperature=1", f"{PARAMS}engine=gpt-4.1"],
            "openai_chat[engine=gpt-4.1, temperature=1.0]",
            "openai_chat-engine_gpt-4.1-temperature_1.0",
        ),
        # What does not differ from the file, or is no param, is not named.
        (["model=openai_chat", f"{PARAMS}temperature=0", f"{PARAMS}engine=gpt-4-32k"], "openai_chat", "openai_chat"),
        (["model=mock", f"{PARAMS}flip=0.25", f"{PARAMS}flip=0.2"], "mock", "mock"),
        (["model=mock", "pool.max_size=2", "rate.requests_per_minute=9", "limit=3"], "mock", "mock"),
        # Nested keys, by their last part; several by their whole path where that is not enough.
        (["model=smollm2", f"{GENERATION}.max_new_tokens=64"], "smollm2[max_new_tokens=64]", None),
        (
            ["model=smollm2", f"{GENERATION}={{max_new_tokens: 64, do_sample: false}}"],
            "smollm2[max_new_tokens=64]",
            None,
        ),
        (["model=smollm2", f"{GENERATION}={{max_new_tokens: 32}}"], "smollm2[do_sample=null]", None),
        (["model=smollm2", f"{PARAMS}loading_params.torch_dtype=float32"], "smollm2[dtype=float32]", None),
        (["model=openai_chat", "model.name=openai_35_chat"], "openai_chat[name=openai_35_chat]", None),
        # Hub ids are shown; of this machine's paths the last part and a checksum.
        (["model=smollm2", f"{PARAMS}model_name=org/Small-1.7B"], "smollm2[model_name=org/Small-1.7B]", None),
        (
            ["model=llama_ft", f"{PARAMS}model_name=/data/run1/checkpoint-500"],
            "llama_ft[model_name=checkpoint-500~216551]",
            "llama_ft-model_name_checkpoint-500_216551",
        ),
        (["model=llama_ft", f"{PARAMS}model_name=../a/"], "llama_ft[model_name=a~9c9a5e]", None),
        # Of URLs the host, of texts a checksum, of many changes some.
        (
            ["model=openai_chat", f"{PARAMS}base_url=http://10.0.0.1:8000/v1?tenant=hidden"],
            "openai_chat[base_url=10.0.0.1:8000]",
            "openai_chat-base_url_10.0.0.1_8000",
        ),
        (
            ["model=smollm2", f"{PARAMS}message_formatting_template='Q: {{message}} A:'"],
            "smollm2[message_formatting_template=~d4c8cf]",
            None,
        ),
        (
            ["model=smollm2", f"{GENERATION}={{do_sample: true, temperature: 0.5, top_k: 4, max_new_tokens: 5}}"],
            "smollm2[do_sample=true, max_new_tokens=5, temperature=0.5, ~b7f7f7]",
            None,
        ),
    ],
)
def test_a_target_is_called_by_its_name_and_what_was_changed(
    words: list[str], label: str, in_run_id: str | None
) -> None:
    config = loaded(*words)
    (target,) = config.targets
    assert config.label(target) == label
    assert config.run_id.startswith(f"{in_run_id or target}-")
    assert RUN_ID.fullmatch(config.run_id)
    assert not re.search(r"[/~]data|run1|hidden|me@", config.run_id + config.label(target))


def test_the_order_of_the_words_changes_no_name() -> None:
    words = [f"{PARAMS}temperature=0.2", f"{PARAMS}engine=gpt-4.1", f"{PARAMS}max_tokens=7"]
    one, other = (loaded("model=openai_chat", *ordered) for ordered in (words, words[::-1]))
    assert (one.run_id, one.label("openai_chat")) == (other.run_id, other.label("openai_chat"))


@pytest.mark.parametrize("key", ["api_key", "hf_token", "proxy_password", "client_secret"])
def test_a_value_that_its_key_calls_a_secret_is_in_no_name(key: str) -> None:
    changed = {key: "sk-1234567890"}
    assert labels.label("m", changed) == f"m[{key}=…]"
    assert labels.file_name_part("m", changed) == f"m-{key}_"


def test_a_name_of_a_run_stays_a_short_name_whatever_was_changed() -> None:
    words = [
        f"{PARAMS}engine={'x' * 32}",
        f"{PARAMS}base_url=https://{'a.' * 60}example/v1",
        f"{PARAMS}temperature=0.1",
    ]
    config = loaded("model=openai_chat", *words)
    assert RUN_ID.fullmatch(config.run_id)
    assert config.run_id.startswith("openai_chat-base_url_")
    assert len(config.run_id) <= 120


@pytest.mark.parametrize("words", [["model=mock"], ["model=mock", f"{PARAMS}flip=0.25"], ["model=mock,openai_chat"]])
def test_the_names_of_runs_end_in_the_checksum_that_they_always_had(words: list[str]) -> None:
    config = loaded(*words)
    assert "changes" not in config.question()
    assert "changes" not in config.model_dump(mode="json")
    digest = hashlib.sha256(canonical_json(config.question()).encode()).hexdigest()[:8]
    assert config.run_id.endswith(f"-mcqabaseline-{digest}")
    assert config.earlier_run_id == "-".join([*config.targets, "mcqabaseline", digest])


def test_a_run_that_has_its_earlier_name_is_continued_under_it(tmp_path: Path) -> None:
    words = ["model=mock", f"{PARAMS}flip=0.25", f"runs_dir={tmp_path}"]
    new = loaded(*words)
    (tmp_path / new.earlier_run_id).mkdir()
    assert loaded(*words).run_id == new.run_id != new.earlier_run_id
    (tmp_path / new.earlier_run_id / "config.yaml").write_text("{}")
    assert loaded(*words).run_id == new.earlier_run_id
    assert loaded(*words, "run_id=own").run_id == "own"
    assert loaded(*words).question() == new.question()


RECORDED = Path(__file__).parent / "data" / "recorded" / "2026-11" / "ledger"


def torn(folder: Path) -> Path:
    (segment,) = folder.glob("*.ledger")
    segment.write_bytes(segment.read_bytes()[7:])
    return folder


def empty(folder: Path) -> Path:
    (segment,) = folder.glob("*.ledger")
    segment.write_bytes(b"")
    return folder


def as_it_is(folder: Path) -> Path:
    return folder


def gone(folder: Path) -> Path:
    return folder / "nowhere"


@pytest.mark.parametrize(
    ("ledger", "run_id", "has"),
    [
        (as_it_is, "mock-2tasks-580dd227", True),
        (as_it_is, "mock-2tasks-580dd228", False),
        (torn, "mock-2tasks-580dd227", False),
        (empty, "mock-2tasks-580dd227", False),
        (gone, "mock-2tasks-580dd227", False),
    ],
)
def test_a_ledger_says_whether_a_run_has_written_into_it(
    tmp_path: Path, ledger: Callable[[Path], Path], run_id: str, has: bool
) -> None:
    folder = ledger(shutil.copytree(RECORDED, tmp_path / "ledger"))
    assert has_records_of(Folder(str(folder)), run_id) == has


# Where people read it


def test_the_plan_names_the_changed_target_and_the_role_apart() -> None:
    words = ["model=openai_chat", f"{PARAMS}temperature=0.2", "task=conclusion_generation"]
    lines = list(plan_lines(Plan(loaded(*words)).describe()))
    assert [line for line in lines if "openai_chat" in line and "stream" in line] == [
        "openai_chat[temperature=0.2]: one stream of 57 samples"
    ]
    assert [line.partition(":")[0] for line in lines if line.startswith("  openai_chat")] == [
        "  openai_chat[temperature=0.2] as target",
        "  openai_chat as judge",
    ]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["model=openai_chat"], ["openai_chat"]),
        (["model=openai_chat", f"{PARAMS}temperature=0.2"], ["openai_chat[temperature=0.2]", "openai_chat"]),
        (["model=mock", f"{PARAMS}flip=0.25"], ["mock", "openai_chat"]),
    ],
)
def test_two_models_of_a_run_never_have_one_key_in_its_directory(words: list[str], keys: list[str]) -> None:
    config = loaded(*words, "task=conclusion_generation")
    (target,) = config.targets
    assert [level.names.key for level in levels_of(config, target)] == keys
    assert {level.names.name for level in levels_of(config, target)} <= {"openai_chat", "mock"}


@pytest.mark.parametrize(
    "stored", [{"m": "m[engine=gpt-4.1]"}, {}, None], ids=["labels", "none", "an earlier version"]
)
def test_a_report_names_what_was_changed_from_the_directory_alone(
    tmp_path: Path, stored: dict[str, str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"clean": ("",), "spelling": ("n=0", "n=3", "n=10")}
    how = spec({"clean": task_spec({"": 40}), "spelling": task_spec(dict.fromkeys(tasks["spelling"], 40), "clean")})
    directory = store(tmp_path, how, many(tasks, 40))
    kept = {} if stored is None else {"model_labels": stored}
    directory.folder.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create({"format": 1, **kept})).encode())
    before = json.dumps(directory.write_metrics())
    directory = RunDirectory(directory.folder)
    report.write_summary(directory)
    label = (stored or {}).get("m", "m")
    summary = directory.folder.read("summary.md").decode()
    rows = [line.split(" | ")[0] for line in summary.splitlines() if line.startswith("| m")][1:]
    assert [row.replace("\\", "").strip("| ") for row in rows] == [label] * 4
    assert f"- {label} spelling:" in summary.replace("\\", "")
    assert json.dumps(json.loads(directory.folder.read("metrics.json"))) == json.dumps(
        json.loads(before), sort_keys=True
    )
    assert {cell["model"] for cell in json.loads(before)["cells"]} == {"m"}


def test_a_model_that_judges_itself_is_found_under_any_label(tmp_path: Path) -> None:
    scores = {
        "partial": None,
        "roles": {"judge": "m"},
        "cells": [{"model": "m[temperature=0.2]", "config": "m", "task": "t", "variant": ""}],
    }
    assert any("the judge, m, is also a model under test" in line for line in report.warnings(scores))


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_says_what_was_changed_and_keeps_the_configs_name_in_its_numbers(
    bench: Callable[[Sequence[str]], Any],
) -> None:
    asked = [
        "model=mock",
        f"{PARAMS}flip=0.25",
        "task=mcqabaseline,conclusion_generation",
        "roles.judge=mock",
        "limit=5",
    ]
    done = bench(asked)
    assert done.status == 0
    assert done.run.name.startswith("mock-flip_0.25-2tasks-")
    assert "mock[flip=0.25]" in done.out
    assert "mock\\[flip=0.25\\]" in done.read("summary.md")
    assert {cell["model"] for cell in json.loads(done.read("metrics.json"))["cells"]} == {"mock"}
    models = json.loads(done.read("env.json"))["models"]
    assert {key: model["identity"]["flip"] for key, model in models.items()} == {"mock": 0.2, "mock[flip=0.25]": 0.25}
