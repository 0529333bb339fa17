"""What a plan expects a run to take: by the ledger, by the usual lengths, by the rate, by earlier runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_items import item, write_items

from rambla_ray.actors.mock import MockModel, MockParams
from rambla_ray.config.load import load
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Pool
from rambla_ray.ledger.look import Look
from rambla_ray.ledger.record import Record
from rambla_ray.results.earlier_speed import Speed, earlier_speed
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.run.pool_calls import known_identity
from rambla_ray.schema import Identity, ReplyDetails, Request, Response

PRICE = "model.price={input_per_million: 10, output_per_million: 100, cached_input_per_million: 1}"
CHAT = ("model=openai_chat", "model.params.api_type=openai", "task=mcqabaseline", "roles.judge=mock")
TEXT = "x" * 400


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of a chat model on four items, with a price."""
    for name in ("OPENAI_API_VERSION", "OPENAI_API_BASE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    own = write_items(tmp_path, {str(number): item(f"Is it {number}?", context=TEXT) for number in range(4)})
    return [*CHAT, PRICE, own, f"runs_dir={tmp_path / 'runs'}"]


def described(words: Iterable[str]) -> dict[str, Any]:
    return Plan(load(list(words))).describe()


def pool(words: Iterable[str]) -> dict[str, Any]:
    (only,) = described(words)["streams"].values()
    return dict(only[0])


def write_ledger(runs_dir: Path, records: Iterable[Record], name: str = "a") -> None:
    (runs_dir / "ledger").mkdir(parents=True, exist_ok=True)
    (runs_dir / "ledger" / f"{name}.ledger").write_bytes(b"".join(record.to_line() for record in records))


def record(
    request_id: str, text: str = "Yes.", model: str = "openai_chat", role: str = "target", **more: Any
) -> Record:
    return Record(request_id, "r", model, role, Response(text, latency_s=3.0, **more), at=1.0)


def test_what_nobody_has_seen_is_of_usual_length_at_the_input_price(words: list[str]) -> None:
    found = pool(words)
    tokens, answers = found["prompt_tokens_expected"], found["completion_tokens_expected"]
    assert (found["unique_calls"], found["in_ledger"], found["calls_expected"], answers) == (4, 0, 4, 40)
    assert found["lengths_from"] == "usual"
    assert found["cost_usd_expected"] == pytest.approx((tokens * 10 + answers * 100) / 1e6)
    assert found["cost_usd_at_most"] == pytest.approx((tokens * 10 + 4 * 800 * 100) / 1e6)
    assert "seconds_expected" not in found


def test_batches_cost_less_and_may_take_as_long_as_they_are_waited_for(words: list[str]) -> None:
    live, batched = pool(words), pool([*words, "model.batch={max_wait_s: 7200}"])
    assert batched["cost_usd_expected"] == pytest.approx(live["cost_usd_expected"] / 2)
    assert (batched["seconds_at_most"], "seconds_expected" in batched) == (7200, False)


@pytest.mark.parametrize(
    ("rate", "seconds"),
    [
        ("rate.requests_per_minute=2", 120),
        ("rate.tokens_per_minute=60", None),
        ("rate.requests_per_minute=100000", 0.2),
    ],
)
def test_time_is_by_the_limit_or_latency_that_binds(
    words: list[str], tmp_path: Path, rate: str, seconds: float | None
) -> None:
    write_ledger(tmp_path / "runs", [record("f" * 64, completion_tokens=2)])
    found = pool([*words, rate])
    tokens = found["prompt_tokens_expected"] + found["completion_tokens_expected"]
    assert found["seconds_expected"] == pytest.approx(tokens if seconds is None else seconds)


def test_answers_of_the_model_in_the_ledger_say_how_long_others_are(words: list[str], tmp_path: Path) -> None:
    """Two answers of it in the role, one in another role, one of another model."""
    thought = ReplyDetails(reasoning_tokens=300)
    records = [record("1" * 64, completion_tokens=2), record("2" * 64, completion_tokens=402, details=thought)]
    records += [record("3" * 64, role="judge", completion_tokens=9), record("4" * 64, model="m", completion_tokens=9)]
    write_ledger(tmp_path / "runs", records)
    found = pool(words)
    assert (found["lengths_from"], found["completion_tokens_expected"]) == ("ledger", 4 * 202)
    both = pool([*words, "task=mcqabaseline,conclusion_generation"])
    assert both["lengths_from"] == "usual"  # Nobody knows which of the two kinds of answers those were.
    assert both["completion_tokens_expected"] == 4 * (150 + 10) + (150 + 200)  # One abstract.


def test_a_look_is_bounded_and_passes_over_what_is_damaged(tmp_path: Path) -> None:
    write_ledger(tmp_path, [record(f"{number:064}") for number in range(8)])
    with (tmp_path / "ledger" / "a.ledger").open("ab") as file:
        file.write(b"torn\n" + record("9" * 64).to_line()[:50])
    write_ledger(tmp_path, [record(f"{number:064}") for number in range(8, 16)], name="b")
    folder = str(tmp_path / "ledger")
    whole, part = Look.at(folder, {"openai_chat"}), Look.at(folder, (), most_bytes=100)
    assert (whole.is_whole, sum(f"{number:064}" in whole for number in range(20))) == (True, 16)
    assert (part.is_whole, sum(f"{number:064}" in part for number in range(20)), part.lengths) == (False, 8, {})
    assert whole.lengths["openai_chat", "target"].answers == 16
    nowhere = Look.at(str(tmp_path / "none"), ())
    assert (nowhere.is_possible, nowhere.is_whole) == (True, True)
    assert not Look.at("s3://no-such-bucket/ledger", ()).is_possible


def test_a_local_model_is_as_fast_as_in_its_last_run(tmp_path: Path) -> None:
    params = {"model_name": "m", "device_map": "auto"}

    def write_run(name: str, params: dict[str, str], calls: dict[str, Any] | None) -> None:
        (tmp_path / name).mkdir()
        config = {"question": {"targets": {"local": {"params": params}}, "roles": {}}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / name / "calls.json").write_text("{" if calls is None else json.dumps(calls))

    assert earlier_speed(str(tmp_path), "local", params) is None
    work = {"requests": 10, "busy_s": 5.0, "load_s": 3.0}
    write_run("done", params, {"invocations": [{"local": {"local": work}}, {}]})
    write_run("other", {"model_name": "n"}, {"invocations": [{"local": {"local": {**work, "busy_s": 1.0}}}]})
    write_run("damaged", params, None)
    assert earlier_speed(str(tmp_path), "local", params) == Speed(0.5, 3.0)
    assert earlier_speed(str(tmp_path / "none"), "local", params) is None


@pytest.mark.parametrize(
    ("budget", "is_noted"), [("usd=0.001", True), ("usd=1", False), ("tokens=9", True), ("tokens=100000", False)]
)
def test_a_budget_below_what_is_expected_is_a_note(words: list[str], budget: str, is_noted: bool) -> None:
    lines = list(plan_lines(described([*words, f"budget.{budget}"])))
    assert any(line.startswith(f"budget.{budget} is below the ") for line in lines) == is_noted


class Renamed(MockModel):
    """A plugin that says otherwise what it is, and what its requests are."""

    def identity(self) -> dict[str, object]:
        return {"class": "renamed"}


class Hinted(MockModel):
    def request_identity(self, request: Request) -> dict[str, object]:
        return {"hint": 1}


def test_an_identity_is_believed_only_where_the_class_leaves_it_as_params_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    chat = {"engine": "e", "temperature": 0, "api_type": "openai"}
    for name, params in {"mock": {}, "text_overlap": {"metric": "bleu"}, "openai_chat": chat}.items():
        config = ModelConfig.model_validate({"name": name, "params": params})
        assert known_identity(config) == config.kind(config.params, Pool(), config.rate).identity()
    for kind in (Renamed, Hinted):
        config = ModelConfig.model_validate({"name": f"{kind.__module__}:{kind.__name__}"})
        assert known_identity(config) is None


def test_the_mock_and_its_params_know_requests_alike() -> None:
    request = Request("p", sample_id="s", target="yes", choices=("yes", "no"))
    for params in (MockParams(), MockParams(behaviour="constant"), MockParams(error_rate=0.5)):
        model = MockModel(params, Pool(), None)
        ids = {
            Identity(model.identity()).request_id(fields)
            for fields in (model.request_identity(request), params.request_fields(request))
        }
        assert len(ids) == 1
