"""Where transformers reads a checkpoint from: a folder, a hub id, or what its GGUF file was unpacked to before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rambla_ray.actors.local.checkpoint_params import CheckpointParams
from rambla_ray.actors.local.gguf import (
    FROM,
    Part,
    UnpackedGguf,
    config_part,
    keeps_weights,
    open_gguf,
    tokenizer_part,
    weights_part,
)
from rambla_ray.actors.local.special_tokens import numbered, without_unknown_pad, words_of_config
from rambla_ray.actors.local.weights import config_of

T = TypeVar("T")


class Source:
    """Loads the tokenizer, the config and the weights of a checkpoint.

    Args:
        params: of the model.
        base: the folder or hub id of the full weights.
        tokenizer_place: that of the tokenizer.
        shared: arguments that all calls of `from_pretrained` get.
        notify: takes a line for the user.
    """

    def __init__(
        self,
        params: CheckpointParams,
        base: str,
        tokenizer_place: str,
        shared: Mapping[str, Any],
        notify: Callable[[str], None],
    ) -> None:
        self._params = params
        self._tokenizer_place = tokenizer_place
        self._shared = shared
        options = dict(params.loading_params)
        gguf_file = options.get("gguf_file")
        self._packed = {FROM: base, **({"gguf_file": gguf_file} if gguf_file else {})}
        # What is loaded by another config than transformers would find: the tokenizer and the weights.
        self._config: Any = None
        self._config_of_weights: Any = None
        self._unpacked: UnpackedGguf | None = None
        if gguf_file and "subfolder" not in options:
            self._unpacked = open_gguf(base, gguf_file, shared, notify)

    @property
    def known_digests(self) -> Mapping[str, str]:
        """The sha256 of files that have been read as a whole, by name."""
        if self._unpacked is None:
            return {}
        return {str(self._params.loading_params["gguf_file"]): self._unpacked.sha256}

    def tokenizer(self, kind: Any) -> Any:
        """The tokenizer, loaded with transformers' AutoTokenizer."""
        if self._tokenizer_place != self._packed[FROM]:
            return kind.from_pretrained(self._tokenizer_place, **self._shared)
        if self._unpacked is None and self._config is not None:
            return self._loader(kind, config=self._config)(self._packed)
        return self._obtain(tokenizer_part(self._loader(kind)))

    def config(self, kind: Any, tokenizer_kind: Any) -> Any:
        """The config, loaded with transformers' AutoConfig; by AutoTokenizer, if it names special tokens by words."""
        words = words_of_config(config_of(Path(self._packed[FROM])))
        if self._unpacked is None and words:
            return self._config_of_words(words, kind, tokenizer_kind)
        config = self._obtain(config_part(self._loader(kind)))
        self._config_of_weights = without_unknown_pad(config)
        return config

    def _config_of_words(self, words: Mapping[str, Any], kind: Any, tokenizer_kind: Any) -> Any:
        """The config of a checkpoint that names these special tokens by words, which transformers does not take."""
        from transformers import PreTrainedConfig

        members, _ = PreTrainedConfig.get_config_dict(**self._packed, **self._shared)
        config = self._config = kind.for_model(**{**members, **dict.fromkeys(words)})
        tokenizer = self.tokenizer(tokenizer_kind)
        for name, given in words.items():
            setattr(config, name, numbered(given, tokenizer))
        self._config_of_weights = without_unknown_pad(config) or config
        return config

    def model(self, kind: Any, dtype: str, chip: str, **options: Any) -> tuple[Any, Mapping[str, Any]]:
        """The weights, and transformers' report of what it found.

        Args:
            kind: one of transformers' Auto classes.
            dtype: torch's name of the type of the weights.
            chip: where they go: cpu or cuda.
            options: for `from_pretrained`.
        """
        own = {key: value for key, value in self._params.loading_params.items() if key != "gguf_file"}
        if self._config_of_weights is not None:
            options["config"] = self._config_of_weights
        load = self._loader(kind, output_loading_info=True, **options, **{**own, "dtype": dtype})
        if self._unpacked is not None and not keeps_weights(self._params.loading_params):
            loaded: tuple[Any, Mapping[str, Any]] = load(self._packed)
        else:
            loaded = self._obtain(weights_part(kind, dtype, chip, load))
        return loaded

    def _loader(self, kind: Any, **options: Any) -> Callable[[Mapping[str, Any]], Any]:
        return lambda place: kind.from_pretrained(**place, **self._shared, **options)

    def _obtain(self, part: Part[T]) -> T:
        return part.load(self._packed) if self._unpacked is None else self._unpacked.obtain(part)
