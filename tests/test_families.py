"""A config with several adapters: the targets that it is, their names, and a run of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import lora
import pyarrow.parquet as pq
import pytest
import tiny_llama
from conftest import Bench

from rambla_ray.config.load import load, load_served
from rambla_ray.errors import UserError
from rambla_ray.run.plan import Plan

JUDGED = ["model=mock", "task=conclusion_generation"]
MODEL = "{{name: huggingface_llm, params: {{model_name: {base}, adapters: {{a: {a}, b: {b}}}, {rest}}}}}"


def write(folder: Path, name: str, base: str = "base", a: str = "one", b: str = "two", rest: str = "") -> str:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / f"{name}.yaml").write_text(MODEL.format(base=base, a=a, b=b, rest=rest))
    return f"conf_dir={folder}"


def test_each_adapter_is_a_target_and_all_are_one_stream(tmp_path: Path) -> None:
    config = load([write(tmp_path, "ft"), "model=mock,ft", "task=mcqabaseline", "limit=8"])
    assert list(config.targets) == ["mock", "ft-a", "ft-b"]
    assert config.streams == [("mock",), ("ft-a", "ft-b")]
    assert [config.targets[name].params.model_dump()["adapter"] for name in ("ft-a", "ft-b")] == ["one", "two"]
    plan = Plan(config)
    (level,) = plan.levels("ft-a")
    assert [member.name for member in level.family] == ["ft-a", "ft-b"]
    assert sum(block["count"] for block in plan.blocks([level])) == 8, "of each of them"


def test_a_target_is_labelled_with_its_own_adapter_alone(tmp_path: Path) -> None:
    words = [write(tmp_path, "ft"), "model=ft", "task=mcqabaseline", "model.params.adapters.a=other"]
    config = load(words)
    assert [config.label(target) for target in config.targets] == ["ft-a[adapter=other]", "ft-b"]


def test_each_adapter_is_served_by_its_name_from_one_deployment(tmp_path: Path) -> None:
    config = load_served([write(tmp_path, "ft"), "model=ft"])
    assert {name: list(models) for name, models in config.deployments.items()} == {"ft": ["ft-a", "ft-b"]}


@pytest.mark.parametrize(
    ("other", "words", "reason"),
    [
        ("ft-a", ["model=ft"], "params.adapters.a would be the target ft-a, and another model has that name"),
        ("x" * 99, [f"model={'x' * 99}"], "which is too long for a name"),
        (
            "other",
            ["model=mock", "roles.judge=ft", "task=conclusion_generation"],
            "has several adapters, and a judge is one model",
        ),
    ],
)
def test_what_a_config_with_adapters_cannot_be_is_refused_in_a_line(
    tmp_path: Path, other: str, words: list[str], reason: str
) -> None:
    write(tmp_path, other)
    with pytest.raises(UserError, match=reason) as caught:
        load([write(tmp_path, "ft"), "task=mcqabaseline", *words])
    assert "\n" not in str(caught.value)


def request_ids(run: Bench, target: str) -> list[str]:
    table = pq.read_table(run.runs_dir / "two" / "samples" / f"{target}--mcqabaseline.parquet")
    return [steps[0]["request_id"] for steps in table["steps"].to_pylist()]


@pytest.mark.usefixtures("ray_cluster")
def test_adapters_of_one_run_and_a_folder_in_llama_ft_path_share_their_answers(
    bench: Callable[[Sequence[str]], Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama.build(tmp_path / "base", max_position_embeddings=4096)
    one, two = (str(lora.train(base, tmp_path / name, seed)) for seed, name in enumerate(("one", "two")))
    rest = "loading_params: {torch_dtype: bfloat16}, generation_config: {max_new_tokens: 4}, is_finetuned: true"
    words = ["task=mcqabaseline", "limit=4", "pool.num_cpus=1"]
    folder = write(tmp_path, "ft", base=str(base), a=one, b=two, rest=rest)
    run = bench([folder, "model=ft", "run_id=two", *words])
    cells = json.loads((run.runs_dir / "two" / "metrics.json").read_text())["cells"]
    assert [(cell["model"], cell["n"]) for cell in cells] == [("ft-a", 4), ("ft-b", 4)]
    assert len({*request_ids(run, "ft-a"), *request_ids(run, "ft-b")}) == 8
    monkeypatch.setenv("LLAMA_FT_PATH", one)
    alone = bench(["model=llama_ft", "run_id=one", *words, "model.params.generation_config={max_new_tokens: 4}"])
    assert "no calls, every answer came from the ledger" in alone.out, alone.err
