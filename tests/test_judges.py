"""Models that compare two texts: what all of them share, and natural language inference."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import judge_models
import pytest
import tiny_llama
import tiny_nli
import torch
from judge_models import PAIRS, POSITIONS, ask, build, edit, load_error, nli, numbers, texts
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rambla_ray.actors.judges import HuggingFaceEmbeddings, HuggingFaceJudge, HuggingFaceNLI
from rambla_ray.actors.local.job import Job
from rambla_ray.actors.model import Model
from rambla_ray.actors.openai import OpenAIEmbeddings
from rambla_ray.actors.overlap import OverlapModel
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.registry import model_class
from rambla_ray.schema import Request, canonical_json
from rambla_ray.scoring import similarity

copy = judge_models.copy
tiny = judge_models.tiny

KINDS: list[tuple[type[Model], dict[str, Any]]] = [
    (HuggingFaceNLI, {}),
    (HuggingFaceEmbeddings, {}),
    (OverlapModel, {"metric": "bleu"}),
]


@pytest.mark.parametrize(("kind", "given"), [KINDS[0], KINDS[2]])
def test_a_request_without_a_pair_is_refused(kind: type[Model], given: dict[str, Any], tiny: Path) -> None:
    local = issubclass(kind, HuggingFaceJudge)
    model = build(kind, tiny) if local else kind(kind.Params(**given), Pool(), None)
    with pytest.raises(CallError) as caught:
        asyncio.run(model.generate(Request("alone")))
    assert caught.value.kind == ErrorKind.BAD_REQUEST


@pytest.mark.parametrize(
    ("name", "kind", "is_local"),
    [
        ("huggingface_nli", HuggingFaceNLI, True),
        ("huggingface_embeddings", HuggingFaceEmbeddings, True),
        ("openai_embeddings", OpenAIEmbeddings, False),
        ("text_overlap", OverlapModel, False),
    ],
)
def test_the_registry_knows_the_models_that_score(name: str, kind: type[Model], is_local: bool) -> None:
    assert model_class(name) is kind
    assert (kind.Params.produces, kind.Params.is_local) == ("score", is_local)


def test_the_pair_and_its_order_are_part_of_a_requests_identity(tiny: Path) -> None:
    model = nli(tiny)
    asked = [Request("a", "b"), Request("b", "a"), Request("a", "c")]
    assert len({canonical_json(model.request_identity(request)) for request in asked}) == 3


# NLI


def logits(folder: Path, premise: str, hypothesis: str, longest: int = POSITIONS) -> dict[str, float]:
    """What transformers itself computes for one pair, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(premise, hypothesis, truncation=True, max_length=longest, return_tensors="pt")
    with torch.inference_mode():
        row = model(**batch).logits[0].tolist()
    return {tiny_nli.LABELS[number]: logit for number, logit in enumerate(row)}


@pytest.fixture(scope="module")
def both_ways(tiny: Path) -> list[tuple[dict[str, float], dict[str, float]]]:
    return [(logits(tiny, *pair), logits(tiny, *reversed(pair))) for pair in PAIRS]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("strategy", ["strict", "relaxed", "average", "unidirectional"])
def test_each_pair_gets_the_result_it_gets_alone_whatever_the_batch_size(
    tiny: Path, both_ways: list[tuple[dict[str, float], dict[str, float]]], strategy: Any, batch_size: int
) -> None:
    alone = [similarity.combine_nli(forward, backward, strategy) for forward, backward in both_ways]
    results = texts(nli(tiny, strategy=strategy, batch_size=batch_size), *PAIRS)
    if strategy in ("strict", "relaxed"):
        assert results == alone
    else:
        assert [float(result) for result in results] == pytest.approx([float(result) for result in alone], abs=1e-5)
    assert len(set(results)) == (2 if strategy in ("strict", "relaxed") else len(PAIRS))


@pytest.mark.parametrize(("strategy", "directions"), [("strict", 2), ("unidirectional", 1)])
def test_both_directions_are_encoded_and_counted_only_where_they_matter(
    tiny: Path, strategy: str, directions: int
) -> None:
    (response,) = ask(nli(tiny, strategy=strategy), ("ab", "cde"))
    assert response.prompt_tokens == directions * (3 + 2 + 3)


class Watched(HuggingFaceNLI):
    """Remembers how many rows each forward pass had."""

    def forward(self, batch: Any) -> Any:
        self.rows = [*getattr(self, "rows", []), len(batch["input_ids"])]
        return super().forward(batch)


def test_requests_that_wait_run_together_both_directions_in_one_batch(tiny: Path) -> None:
    model = build(Watched, tiny, batch_size=4)
    ask(model, *PAIRS)
    assert model.rows == [8, 8, 4]


class Small(HuggingFaceNLI):
    """Its memory holds one request."""

    def run(self, jobs: list[Job]) -> None:
        if len(jobs) > 1:
            raise torch.OutOfMemoryError("a batch too many")
        super().run(jobs)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny: Path) -> None:
    assert texts(build(Small, tiny), *PAIRS) == texts(nli(tiny), *PAIRS)


@pytest.mark.parametrize(
    ("model_type", "longest"), [("bert", POSITIONS), ("roberta", POSITIONS - 2), ("deberta", POSITIONS)]
)
def test_a_pair_is_cut_to_what_the_model_takes_the_longer_text_first(
    tmp_path: Path, model_type: str, longest: int
) -> None:
    folder = tiny_nli.build(tmp_path / model_type, model_type)
    model = nli(folder, strategy="unidirectional")
    job = model.prepare(Request("short", "x" * 500))
    assert len(job.tokens) == longest
    assert model._tokenizer.decode(job.tokens[:7]) == "[CLS]short[SEP]"
    expected = similarity.combine_nli(logits(folder, "short", "x" * 500, longest), None, "unidirectional")
    assert numbers(model, ("short", "x" * 500)) == pytest.approx([float(expected)], abs=1e-5)


def test_the_tokenizers_own_limit_counts_where_it_is_less(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", model_max_length=20)
    assert len(nli(copy).prepare(Request("x" * 50, "y" * 50)).tokens) == 20


def test_a_judge_computes_in_float32_on_a_cpu_unless_told_otherwise(tiny: Path) -> None:
    assert nli(tiny).identity()["loading"] == {"dtype": "torch.float32"}
    assert nli(tiny, loading_params={"torch_dtype": "bfloat16"}).identity()["loading"] == {"dtype": "torch.bfloat16"}


def test_values_that_are_no_numbers_are_an_error_and_no_result(tiny: Path) -> None:
    model = nli(tiny)
    with torch.no_grad():
        model._model.classifier.bias[0] = float("nan")
    (failed,) = ask(model, PAIRS[0])
    assert (failed.kind, "NaN" in failed.message) == (ErrorKind.INTERNAL, True)


@pytest.mark.parametrize(
    "own", [{"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, {"0": "no", "1": "yes", "2": "unsure"}]
)
def test_label_map_names_the_labels_of_a_checkpoint_that_does_not(copy: Path, tiny: Path, own: dict[str, str]) -> None:
    edit(copy / "config.json", id2label=own)
    message = load_error(lambda: nli(copy))
    assert "label_map" in message
    assert all(name in message for name in own.values())
    named = nli(copy, label_map=tiny_nli.LABELS)
    assert texts(named, *PAIRS) == texts(nli(tiny), *PAIRS)
    assert named.identity()["labels"] == list(tiny_nli.LABELS.values())


def test_labels_may_be_in_capitals(copy: Path, tiny: Path) -> None:
    edit(copy / "config.json", id2label={"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"})
    assert texts(nli(copy), *PAIRS) == texts(nli(tiny), *PAIRS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"label_map": {0: "entailment", 1: "neutral", 2: "contradiction"}}, "label_map contradicts it"),
        ({"label_map": {0: "no", 2: "entailment"}}, "must name each of the labels 0, 1, 2"),
        ({"label_map": {0: "no", 1: "neutral", 2: "entailment", 3: "?"}}, "must name each of the labels 0, 1, 2"),
        (
            {"label_map": {0: "entailment", 1: "neutral", 2: "Entailment"}},
            "exactly one label must be named entailment",
        ),
        ({"label_map": {0: "no", 1: "no", 2: "entailment"}}, "none twice"),
        ({"label_map": {0: "a", 1: "b", 2: "c"}}, "the labels are 0: a, 1: b, 2: c"),
        ({"label_map": {0: "a", 1: "b", 2: "entailment"}, "strategy": "relaxed"}, "needs a label named neutral"),
    ],
)
def test_labels_that_cannot_be_right_are_a_load_error(tiny: Path, given: dict[str, Any], says: str) -> None:
    assert says in load_error(lambda: nli(tiny, **given))


def test_a_checkpoint_without_a_classifier_is_a_load_error(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    assert "it lacks 1 weights, for example score.weight" in load_error(lambda: nli(folder))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "lenient"}, "strategy"),
        ({"label_map": {"two": "entailment"}}, "label_map"),
        ({"is_finetuned": True}, "is_finetuned"),
        ({"generation_config": {}}, "generation_config"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
        ({"loading_params": {"torch_dtype": "bfloat61"}}, "did you mean 'bfloat16'"),
    ],
)
def test_params_that_make_no_sense_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        HuggingFaceNLI.Params(model_name="x", **given)


def test_params_survive_the_way_to_an_actor() -> None:
    params = HuggingFaceNLI.Params(model_name="x", label_map=tiny_nli.LABELS, device="cpu")
    assert HuggingFaceNLI.Params.model_validate(params.model_dump(mode="json")) == params


def test_a_missing_folder_is_refused_before_any_request(tmp_path: Path) -> None:
    params = HuggingFaceEmbeddings.Params(model_name=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        params.preflight(same_machine=True)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"strategy": "relaxed"}, True),
        ({"label_map": {0: "opposite", 1: "neutral", 2: "entailment"}}, True),
        ({"label_map": tiny_nli.LABELS}, False),
        ({"batch_size": 3}, False),
        ({"device": "cpu"}, False),
    ],
)
def test_identity_changes_with_what_may_change_a_result_only(
    tiny: Path, copy: Path, change: dict[str, Any], differs: bool
) -> None:
    assert (nli(copy, **change).identity() != nli(tiny).identity()) == differs


@pytest.mark.parametrize("strategy", ["strict", "relaxed", "average", "unidirectional"])
def test_each_strategy_has_its_config(strategy: str) -> None:
    name = f"nli_{strategy}"
    assert load([f"model={name}", "task=mcqabaseline"]).targets[name].params.strategy == strategy
