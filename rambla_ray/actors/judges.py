"""Local models that compare two texts: natural language inference, and embeddings."""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from rambla_ray.actors.local.checkpoint import BaseHuggingFaceModel
from rambla_ray.actors.local.job import Job
from rambla_ray.actors.local.params import CheckpointParams
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response
from rambla_ray.scoring import similarity

POOLING = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}  # sentence-transformers' names
GIVE_BOTH = "to leave sentence-transformers' files unread, give pooling and normalize"
UNLIMITED = 10**9  # tokenizers without a limit name a larger one


class NLIParams(CheckpointParams):
    """A classifier of text pairs, and how its two directions become one result."""

    produces = "score"

    label_map: dict[int, str] | None = Field(
        None,
        description="number to name of the labels, one of them entailment; the checkpoint's id2label when not given",
    )
    strategy: similarity.Strategy = Field(
        "strict",
        description="strict: entailment both ways; relaxed: one way, and neutral at least the other; average, "
        "unidirectional: the probability of entailment both ways, or forward alone",
    )


class HuggingFaceEmbeddingsParams(CheckpointParams):
    """An encoder, and how its token vectors become one."""

    produces = "score"
    embeds = True

    pooling: Literal["mean", "cls"] | None = Field(
        None, description="as the checkpoint's sentence-transformers files say when not given, else mean"
    )
    normalize: bool | None = Field(
        None, description="vectors of length 1; as the checkpoint's sentence-transformers files say when not given"
    )


class HuggingFaceJudge(BaseHuggingFaceModel[Job]):
    """A model that compares a request's two texts: one forward pass over right-padded encodings, and no generation.

    All encodings of a request run in the same batch. A text that is too long is cut, as RAmBLA's is.
    """

    @abstractmethod
    def encode(self, text: str, pair: str | None) -> Iterable[Any]:
        """What the tokenizer makes of the two texts: the encodings to run. Raises CallError when there is but one."""

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """The values of a padded batch of encodings: a tensor (encodings, values)."""

    @abstractmethod
    def compare(self, values: list[list[float]]) -> str:
        """The response's text from the values of one request's encodings."""

    def load_checkpoint(self, kind: Any) -> None:
        self.read_checkpoint()
        super().load_checkpoint(kind)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token_id is None:
            raise self.load_error("its tokenizer has neither a pad nor an eos token")
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.padding_side = "right"
        self.max_tokens = self._longest_encoding()

    def _longest_encoding(self) -> int | None:
        """Tokens that one encoding may have: the model's positions, or less where the tokenizer says so."""
        limits = [getattr(self._model.config.get_text_config(), "max_position_embeddings", None)]
        for name, module in self._model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from after the pad
        if self._tokenizer.model_max_length < UNLIMITED:
            limits.append(self._tokenizer.model_max_length)
        return min((limit for limit in limits if limit), default=None)

    def tokenize(self, *texts: str) -> Any:
        """The encoding of a text or of a pair, cut to what the model takes."""
        return self._tokenizer(*texts, truncation=self.max_tokens is not None, max_length=self.max_tokens)

    def prepare(self, request: Request) -> Job:
        return Job([dict(encoding) for encoding in self.encode(request.prompt, request.pair)])

    def run(self, jobs: list[Job]) -> None:
        import torch

        encodings = [encoding for job in jobs for encoding in job.encodings]
        batch = self._tokenizer.pad(encodings, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            rows = iter(self.forward(batch).tolist())
        for job in jobs:
            values = [next(rows) for _ in job.encodings]
            if not all(math.isfinite(value) for row in values for value in row):
                job.error = CallError(ErrorKind.INTERNAL, "the model computed NaN or infinity; try a wider dtype")
                continue
            tokens = sum(len(encoding["input_ids"]) for encoding in job.encodings)
            job.response = Response(text=self.compare(values), prompt_tokens=tokens)
        self.usage.computed_tokens += batch["input_ids"].numel()
        self.usage.padding_tokens += int((batch["attention_mask"] == 0).sum())


class HuggingFaceNLI(HuggingFaceJudge):
    """Natural language inference: whether two texts entail each other. The prompt is the first premise."""

    Params: ClassVar[type[ModelParams]] = NLIParams
    params: NLIParams

    def load(self) -> None:
        from transformers import AutoModelForSequenceClassification

        self.load_checkpoint(AutoModelForSequenceClassification)
        self._labels = self._checked_labels()
        self._identity = {**self.checkpoint_identity(), "labels": self._labels, "strategy": self.params.strategy}

    def _checked_labels(self) -> list[str]:
        """The names of the logits, in lower case: the config's or else the checkpoint's own."""
        own = {int(number): name for number, name in self._model.config.id2label.items()}
        given = own if self.params.label_map is None else self.params.label_map
        labels = [given[number].strip().lower() for number in sorted(given)]
        named = f"the labels are {', '.join(f'{number}: {given[number]}' for number in sorted(given))}"
        if given.keys() != own.keys():
            raise self.load_error(
                f"label_map must name each of the labels {', '.join(map(str, sorted(own)))}; {named}"
            )
        if labels.count(similarity.ENTAILMENT) != 1 or len(set(labels)) < len(labels):
            raise self.load_error(
                f"exactly one label must be named entailment, and none twice; {named}: set label_map"
            )
        if self.params.strategy == "relaxed" and similarity.NEUTRAL not in labels:
            raise self.load_error(f"strategy relaxed needs a label named neutral; {named}: set label_map")
        said = [number for number, name in own.items() if name.strip().lower() == similarity.ENTAILMENT]
        if said and said != [labels.index(similarity.ENTAILMENT)]:
            raise self.load_error(
                f"label_map contradicts it: {named}, but entailment is {said[0]} in its config.json; drop label_map"
            )
        return labels

    def encode(self, text: str, pair: str | None) -> Iterable[Any]:
        if pair is None:
            raise CallError(ErrorKind.BAD_REQUEST, "this model compares two texts; the request has one")
        yield self.tokenize(text, pair)
        if self.params.strategy != "unidirectional":
            yield self.tokenize(pair, text)

    def forward(self, batch: Any) -> Any:
        return self._model(**batch).logits.cpu().double()

    def compare(self, values: list[list[float]]) -> str:
        forward, *backward = (dict(zip(self._labels, row, strict=True)) for row in values)
        return similarity.combine_nli(forward, backward[0] if backward else None, self.params.strategy)


class HuggingFaceEmbeddings(HuggingFaceJudge):
    """The inner product of two texts' vectors; of one text alone the vector, as a JSON list.

    What the config leaves open is as sentence-transformers has it.
    """

    Params: ClassVar[type[ModelParams]] = HuggingFaceEmbeddingsParams
    params: HuggingFaceEmbeddingsParams
    unused_weights = ("pooler.",)

    def load(self) -> None:
        from transformers import AutoModel

        self.load_checkpoint(AutoModel)
        card: dict[str, Any] = {"pooling": self.params.pooling, "normalize": self.params.normalize}
        if None in card.values():
            said = self._sentence_transformers()
            card = {key: said[key] if value is None else value for key, value in card.items()}
            self.max_tokens = min(filter(None, (self.max_tokens, said["max_tokens"])), default=None)
        self._card = {**card, "max_tokens": self.max_tokens}
        self._identity = {**self.checkpoint_identity(), **self._card}

    def _sentence_transformers(self) -> dict[str, Any]:
        """What modules.json and the files beside it say; without them the mean, not normalised."""
        said: dict[str, Any] = {"pooling": "mean", "normalize": False, "max_tokens": None}
        for module in self._side_file("modules.json") or []:
            match str(module["type"]).rpartition(".")[2]:
                case "Transformer":
                    said["max_tokens"] = (self._side_file("sentence_bert_config.json") or {}).get("max_seq_length")
                case "Pooling":
                    said["pooling"] = self._pooling_of(self._side_file(f"{module['path']}/config.json") or {})
                case "Normalize":
                    said["normalize"] = True
                case other:
                    raise self.load_error(f"modules.json asks for {other}, which is not supported; {GIVE_BOTH}")
        return said

    def _pooling_of(self, config: dict[str, Any]) -> str:
        modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if on and "pooling_mode_" in key]
        modes += [config["pooling_mode"]] if "pooling_mode" in config else []
        pooling = POOLING.get(str(modes[0])) if len(modes) == 1 else None
        if pooling is None:
            raise self.load_error(f"it pools by {' and '.join(map(str, modes)) or 'an unknown rule'}; {GIVE_BOTH}")
        return pooling

    def _side_file(self, name: str) -> Any:
        """A JSON file of the checkpoint, from its folder or the hub; None when it has none of that name."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self.loading():
            path = Path(self.params.model_name, name)
            if not Path(self.params.model_name).is_dir():
                try:
                    path = Path(
                        hf_hub_download(
                            self.params.model_name,
                            name,
                            revision=self.commit(),
                            local_files_only=self.params.local_files_only,
                        )
                    )
                except LocalEntryNotFoundError:
                    raise  # the hub cannot be asked: whether there is such a file is not known
                except EntryNotFoundError:
                    return None
            return json.loads(path.read_text()) if path.is_file() else None

    def encode(self, text: str, pair: str | None) -> Iterable[Any]:
        return (self.tokenize(text),) if pair is None else (self.tokenize(text), self.tokenize(pair))

    def forward(self, batch: Any) -> Any:
        import torch

        states = self._model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).to(states.device)
        pooled = states[:, 0] if self._card["pooling"] == "cls" else (states * mask).sum(1) / mask.sum(1)
        vectors = pooled.cpu().double()
        return torch.nn.functional.normalize(vectors, dim=-1) if self._card["normalize"] else vectors

    def compare(self, values: list[list[float]]) -> str:
        return json.dumps(values[0]) if len(values) == 1 else repr(similarity.inner_product(*values))
