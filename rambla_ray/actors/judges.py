"""Local models that compare two texts: natural language inference, and embeddings."""

from __future__ import annotations

import importlib.util
import json
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from rambla_ray.actors.local.checkpoint import BaseHuggingFaceModel
from rambla_ray.actors.local.checkpoint_params import CheckpointParams
from rambla_ray.actors.local.job import Job
from rambla_ray.actors.local.sentence_modules import SentenceCard, SentenceModules
from rambla_ray.actors.model import Size
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.inputs import decoded
from rambla_ray.schema import Request, Response
from rambla_ray.scoring import similarity

UNLIMITED = 10**9  # A tokenizer without a limit names a larger number.


class NLIParams(CheckpointParams):
    """A classifier of text pairs, and how its two directions become one result."""

    produces = "score"

    label_map: dict[Annotated[int, Field(ge=0, lt=10**6)], str] | None = Field(
        None,
        description="number to name of the labels, one of them entailment; the checkpoint's id2label when not given",
    )
    strategy: similarity.Strategy = Field(
        "strict",
        description="strict: entailment both ways; relaxed: one way, and neutral at least the other; average, "
        "unidirectional: the probability of entailment both ways, or forward alone",
    )

    @property
    def can_vote(self) -> bool:
        return self.strategy in ("strict", "relaxed")


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

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if same_machine and importlib.util.find_spec("sentence_transformers") is None:
            raise UserError("embeddings need sentence-transformers: pip install 'rambla_ray[hf]' -c constraints.txt")


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
                limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts on from the pad's.
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
        numbers = [number for number, name in own.items() if name.strip().lower() == similarity.ENTAILMENT]
        if numbers and numbers != [labels.index(similarity.ENTAILMENT)]:
            raise self.load_error(
                f"label_map contradicts it: {named}, but entailment is {numbers[0]} in its config.json; drop label_map"
            )
        return labels

    def size(self, request: Request) -> Size:
        prompt_bytes, answer = super().size(request)
        return prompt_bytes * (1 if self.params.strategy == "unidirectional" else 2), answer

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

    What the config leaves open is as the checkpoint's sentence-transformers files have it.
    """

    Params: ClassVar[type[ModelParams]] = HuggingFaceEmbeddingsParams
    params: HuggingFaceEmbeddingsParams
    unused_weights = ("pooler.",)

    def load(self) -> None:
        from transformers import AutoModel

        self.load_checkpoint(AutoModel)
        params = self.params
        if params.pooling is not None and params.normalize is not None:
            card = SentenceCard()
        else:
            card = self._read_card()
            self.max_tokens = min(filter(None, (self.max_tokens, card.max_tokens)), default=None)
        if params.pooling is not None:
            card = replace(card, pooling=params.pooling)
        if params.normalize is not None:
            card = card.with_normalize(params.normalize)
        self._card = card
        self._identity = {
            **self.checkpoint_identity(),
            "pooling": card.pooling,
            "normalize": card.normalizes,
            "max_tokens": self.max_tokens,
            **({"modules": card.trained} if card.trained else {}),
        }

    def load_weights(self) -> None:
        # The dimension is only for the information of whoever asks the pooling for it.
        dimension = getattr(self._model.config.get_text_config(), "hidden_size", 0)
        hub = {**self._shared, "revision": self.commit()}
        self._modules = SentenceModules(self._card, dimension, self.params.model_name, hub)

    def _read_card(self) -> SentenceCard:
        try:
            return SentenceCard.read(self._side_file, trust_remote_code=self.params.trust_remote_code)
        except ValueError as error:
            raise self.load_error(str(error)) from None

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
                    raise  # The hub cannot be asked, so it is not known whether there is such a file.
                except EntryNotFoundError:
                    return None
            return json.loads(decoded(path.read_bytes())) if path.is_file() else None

    def encode(self, text: str, pair: str | None) -> Iterable[Any]:
        return (self.tokenize(text),) if pair is None else (self.tokenize(text), self.tokenize(pair))

    def forward(self, batch: Any) -> Any:
        return self._modules(self._model(**batch).last_hidden_state.float(), batch["attention_mask"])

    def compare(self, values: list[list[float]]) -> str:
        return json.dumps(values[0]) if len(values) == 1 else repr(similarity.inner_product(*values))
