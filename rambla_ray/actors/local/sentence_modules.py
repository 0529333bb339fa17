"""From an encoder's token vectors to one vector per text, with the modules of sentence-transformers.

The encoder itself is loaded and run as every local model is, in batches and with the same errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

POOLING = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}  # sentence-transformers' names.
TRAINED = ("Dense", "LayerNorm")  # Modules behind the pooling that have weights, in a folder of the checkpoint.
GIVE_BOTH = "to leave sentence-transformers' files unread, give pooling and normalize"


@dataclass(frozen=True)
class SentenceCard:
    """What a checkpoint's sentence-transformers files say; without them, the mean of the token vectors.

    Args:
        pooling: mean or cls.
        modules: class and folder of each module behind the pooling, in their order.
        max_tokens: the longest text.
    """

    pooling: str = "mean"
    modules: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None

    @classmethod
    def read(cls, read_file: Callable[[str], Any], *, trust_remote_code: bool) -> Self:
        """Read modules.json and the files that it names.

        Args:
            read_file: returns the content of a JSON file of the checkpoint, None if there is no such file.
            trust_remote_code: whether a module may name code of others as its activation function.

        Raises:
            ValueError: they ask for what is not supported.
        """
        card = cls()
        for module in read_file("modules.json") or []:
            package, _, kind = str(module["type"]).rpartition(".")
            folder = str(module.get("path", ""))
            match kind:
                case "Transformer":
                    longest = (read_file("sentence_bert_config.json") or {}).get("max_seq_length")
                    card = replace(card, max_tokens=longest)
                case "Pooling":
                    card = replace(card, pooling=_pooling(read_file(f"{folder}/config.json") or {}))
                case "Normalize":
                    card = replace(card, modules=(*card.modules, (kind, folder)))
                case "Dense" | "LayerNorm" if package.startswith("sentence_transformers."):
                    _check_module(kind, read_file(f"{folder}/config.json"), trust_remote_code)
                    card = replace(card, modules=(*card.modules, (kind, folder)))
                case _:
                    raise ValueError(f"modules.json asks for {kind}, which is not supported; {GIVE_BOTH}")
        return card

    @property
    def normalizes(self) -> bool:
        """Whether vectors get length 1."""
        return any(kind == "Normalize" for kind, _ in self.modules)

    @property
    def trained(self) -> list[str]:
        """The classes of the modules that have weights."""
        return [kind for kind, _ in self.modules if kind in TRAINED]

    def with_normalize(self, normalize: bool) -> Self:
        """This card with vectors of length 1 at the end, or with none anywhere."""
        if normalize == self.normalizes:
            return self
        modules = tuple(module for module in self.modules if module[0] != "Normalize")
        return replace(self, modules=(*modules, ("Normalize", "")) if normalize else modules)


class SentenceModules:
    """The modules that a card names, on the vectors of an encoder.

    Args:
        card: of the checkpoint.
        dimension: of a token vector.
        checkpoint: a folder or a hub id.
        hub: revision, local_files_only and trust_remote_code, for the modules' files.
    """

    def __init__(self, card: SentenceCard, dimension: int, checkpoint: str, hub: dict[str, Any]) -> None:
        import torch
        from sentence_transformers.sentence_transformer import modules

        self._pooling = modules.Pooling(dimension, pooling_mode=card.pooling)
        loaded = [
            getattr(modules, kind).load(checkpoint, subfolder=folder, **hub)
            if kind in TRAINED
            else modules.Normalize()
            for kind, folder in card.modules
        ]
        # Behind the pooling there is one vector per text, which is cheap to compute on the CPU in double precision.
        self._modules = torch.nn.Sequential(*loaded).double().eval()

    def __call__(self, token_vectors: Any, attention_mask: Any) -> Any:
        """Vectors in double precision on the CPU (texts, dimension).

        Args:
            token_vectors: (texts, tokens, dimension), in single precision.
            attention_mask: (texts, tokens), 1 where there is no padding.
        """
        features = {"token_embeddings": token_vectors, "attention_mask": attention_mask.to(token_vectors.device)}
        pooled = self._pooling(features)["sentence_embedding"].cpu().double()
        return self._modules({"sentence_embedding": pooled})["sentence_embedding"]


def _pooling(config: dict[str, Any]) -> str:
    modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if on and "pooling_mode_" in key]
    modes += [config["pooling_mode"]] if "pooling_mode" in config else []
    pooling = POOLING.get(str(modes[0])) if len(modes) == 1 else None
    if pooling is None:
        raise ValueError(f"it pools by {' and '.join(map(str, modes)) or 'an unknown rule'}; {GIVE_BOTH}")
    return pooling


def _check_module(kind: str, config: dict[str, Any] | None, trust_remote_code: bool) -> None:
    """Refuse a module without files, and one that sentence-transformers would compute with another activation."""
    if config is None:
        raise ValueError(f"modules.json asks for {kind}, of which there is no config.json; {GIVE_BOTH}")
    activation = str(config.get("activation_function") or "torch.")
    if not (activation.startswith("torch.") or trust_remote_code):
        raise ValueError(
            f"modules.json asks for {kind} with {activation}, which is code of others; set params.trust_remote_code: "
            f"true if you trust it; {GIVE_BOTH}"
        )
