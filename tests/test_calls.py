"""calls.json and how samples are scored: what a run reused, what it cost, what its actors did."""

from __future__ import annotations

from pathlib import Path

import pytest

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError
from rambla_ray.results.calls import COUNTED, invocation, throughput
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.shipped import SHIPPED_CONF


@pytest.fixture
def loaded(tmp_path: Path) -> RunConfig:
    """A run of a model that costs a dollar per million tokens."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/paid.yaml").write_text(
        "name: mock\nprice: {input_per_million: 1.0, output_per_million: 2.0}\n"
    )
    words = ["model=paid", "task=paraphrase", "roles.rephraser=mock", f"conf_dir={tmp_path / 'conf'}"]
    return load([*words, f"runs_dir={tmp_path / 'runs'}"])


def spent(**counts: object) -> dict[str, object]:
    return {"model": "paid", "role": "target", **dict.fromkeys(COUNTED, 0), **counts}


def test_calls_say_what_was_reused_and_what_it_cost_over_all_invocations(loaded: RunConfig) -> None:
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    paid = spent(calls=9, answered=5, failed=1, retried=2, hedged=1, prompt_tokens=500_000, completion_tokens=100_000)
    for number in range(2):
        now = {**invocation(0.0, 9 - 9 * number, {}, finished=True), "wall_s": 1.5}
        directory.write_calls(loaded, [paid], {("paid", "target"): 8, ("mock", "rephraser"): 4}, now)
        directory = RunDirectory.create(loaded)
        directory.begin(loaded, {}, [])
    calls = directory.read_calls()
    assert calls is not None
    rephraser, target = calls["models"]
    assert target == {**paid, "reused": 3, "cost_usd": pytest.approx(0.7), "served": []}
    assert (rephraser["calls"], rephraser["reused"], rephraser["cost_usd"]) == (0, 4, None)
    assert set(rephraser) == set(target)
    assert [one["calls"] for one in calls["invocations"]] == [9, 0]
    assert calls["wall_s"] == 3.0


def test_how_samples_are_scored_holds_how_many_are_expected(loaded: RunConfig) -> None:
    how = scoring_spec(loaded, {("paraphrase", ""): 57})
    assert how["tasks"]["paraphrase"] == {
        "labels": ["yes", "no"],
        "pair_with": "mcqabaseline",
        "variants": [""],
        "expected": {"": 57},
    }
    assert (how["models"], how["roles"], how["synthetic"]) == (["paid"], {"rephraser": "mock"}, True)


def test_names_that_come_to_one_file_are_refused(tmp_path: Path) -> None:
    for group, names in {"model": ("a", "a--b"), "task": ("c", "b--c")}.items():
        (tmp_path / group).mkdir()
        source = {"model": "mock.yaml", "task": "mcqabaseline.yaml"}[group]
        text = (SHIPPED_CONF / group / source).read_text()
        for name in names:
            (tmp_path / group / f"{name}.yaml").write_text(text)
    run = load(["model=a,a--b", "task=c,b--c", f"conf_dir={tmp_path}", f"runs_dir={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match=r"share the file a--b--c\.parquet"):
        RunDirectory.create(run)


def test_what_actors_did_is_added_up():
    one = {"batches": 2, "requests": 6, "prompt_tokens": 60, "completion_tokens": 12, "computed_tokens": 50}
    one |= {"padding_tokens": 10, "out_of_memory": 1, "busy_s": 3.0, "idle_s": 1.0, "load_s": 2.0}
    one |= {"weights_bytes": 2**30, "free_bytes": 3 * 2**30, "peak_bytes": 2**31}
    other = {**dict.fromkeys(one, 0), "load_s": 5.0}
    assert throughput([one, other]) == {
        "actors": 2,
        "batches": 2,
        "requests": 6,
        "requests_per_batch": 3.0,
        "prompt_tokens_per_s": 20.0,
        "generated_tokens_per_s": 4.0,
        "padding_share": 0.2,
        "shared_share": 0.3333,
        "waiting_share": 0.25,
        "out_of_memory": 1,
        "busy_s": 3.0,
        "load_s": 5.0,
        "weights_gib": 1.0,
        "free_gib": 3.0,
        "peak_gib": 2.0,
    }
    assert throughput([other])["prompt_tokens_per_s"] is None
