"""Datasets: from a hub id, a local file or a bucket to a list of items.

An adapter turns the records of one public layout into items with the fields, joins and order that RAmBLA uses.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rambla_ray.errors import UserError
from rambla_ray.schema import well_formed
from rambla_ray.stages import Item

DEMO_DIR = Path(__file__).parent / "demo"
FILE_FORMATS = (".json", ".jsonl", ".csv", ".parquet")


class DatasetConfig(BaseModel):
    """`conf/dataset/<name>.yaml`: where items come from and which are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["pubmedqa"] = Field(description="the adapter that reads it")
    path: str = Field(description="a hub id (owner/name), or a local, s3:// or gs:// file")
    subset: str | None = Field(None, description="configuration name on the hub")
    split: str = Field("train", description="split on the hub")
    demo: str = Field(description="file of the same layout shipped in rambla_ray/demo")
    keep: dict[str, list[str]] = Field(
        default_factory=dict, description="keep only items whose field has one of these values"
    )
    limit: int | None = Field(None, gt=0, description="keep the first N items, after `keep`")
    seed: int | None = Field(None, description="shuffle before `limit`; file order when not given")


def load_items(config: DatasetConfig, name: str, *, demo: bool) -> list[Item]:
    """The items of a dataset, in order.

    Args:
        config: what to read.
        name: the dataset's name, for messages.
        demo: read the shipped demo file instead of `config.path`.

    Raises:
        UserError: the data cannot be reached or read, lacks a column, holds an id twice, or nothing is left.
    """
    path = str(DEMO_DIR / config.demo) if demo else config.path
    where = f"dataset {name} ({path})"
    try:
        records = list(_read(path, config))
        items = [_ADAPTERS[config.format](record) for record in records]
    except KeyError as error:
        record = records[len(records) - 1] if len(records) == 1 else _first_without(records, str(error.args[0]))
        raise UserError(
            f"{where} lacks '{error.args[0]}', which format {config.format} needs; it has: {', '.join(record)}"
        ) from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where} is not in the layout that format {config.format} reads: {error}") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())[:200]}") from None
    twice = [root_id for root_id, count in Counter(item.root_id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{where} holds {len(twice)} ids more than once, for example '{twice[0]}'; ids must be unique")
    total = len(items)
    for column, values in config.keep.items():
        items = [item for item in items if item.fields.get(column) in values]
    if not items:
        raise UserError(f"{where} has no items to ask" + (f" ({total} before `keep`)" if total else ": it is empty"))
    if config.seed is not None:
        items = [items[row] for row in np.random.RandomState(config.seed).permutation(len(items))]
    return items[: config.limit]


def _first_without(records: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next((record for record in records if key not in record), records[0])


def _read(path: str, config: DatasetConfig) -> Iterator[dict[str, Any]]:
    """Raw records, one per item."""
    suffix = Path(path).suffix.lower()
    if suffix not in FILE_FORMATS and not _is_local(path) and "://" not in path:
        yield from _read_hub(path, config)
        return
    if suffix not in FILE_FORMATS:
        local = Path(path).expanduser()
        if local.is_dir():
            yield from _read_hub(str(local), config)
            return
        hint = f"a file needs one of the endings {', '.join(FILE_FORMATS)}" if local.exists() else "no such file"
        raise ValueError(hint)
    from pyarrow import csv, fs, parquet

    source = path if "://" in path else str(Path(path).expanduser().absolute())
    filesystem, inner = fs.FileSystem.from_uri(source) if "://" in path else (fs.LocalFileSystem(), source)
    with filesystem.open_input_file(inner) as stream:
        if suffix == ".parquet":
            yield from parquet.read_table(stream).to_pylist()
        elif suffix == ".csv":
            yield from csv.read_csv(stream).to_pylist()
        elif suffix == ".jsonl":
            yield from (json.loads(line) for line in stream.read().decode().splitlines() if line.strip())
        else:
            yield from _json_records(json.loads(stream.read().decode(), object_pairs_hook=_unique_keys))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; json would silently keep the last of two."""
    counts = Counter(key for key, _ in pairs)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"'{twice[0]}' stands twice in one JSON object; ids must be unique")
    return dict(pairs)


def _json_records(value: Any) -> Iterator[dict[str, Any]]:
    """Records of a JSON file: a list of objects, or an object of objects keyed by id (PubMedQA's release)."""
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict) and all(isinstance(record, dict) for record in value.values()):
        yield from ({"pubid": key, **record} for key, record in value.items())
    else:
        raise ValueError("expected a list of objects, or an object of objects keyed by id")


def _is_local(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or Path(path).exists()


def _read_hub(path: str, config: DatasetConfig) -> Iterator[dict[str, Any]]:
    """Records of a hub dataset, or of a local folder in the hub's layout."""
    if not Path(path).is_dir() and not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # a copy in the cache still loads; nothing waits for the network
    import datasets

    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(path, config.subset, split=config.split)
    except Exception as error:  # noqa: BLE001 - the library raises a dozen kinds: offline, not found, gated, bad layout
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"load_dataset failed ({type(error).__name__}: {reason}); give a local copy with "
            "task.dataset.path=<file>, or run on the demo set with data=demo"
        ) from None


def _hub_answers() -> bool:
    """Whether the hub can be reached, so that its client's minutes of retries can be spared."""
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(url, timeout=3.0).close()  # noqa: S310 - the user's own endpoint
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _pubmedqa(record: Mapping[str, Any]) -> Item:
    """PubMedQA, from the GitHub release (upper-case keys) or the hub (nested `context`).

    Source: Jin et al. 2019, https://github.com/pubmedqa/pubmedqa.
    """
    if "QUESTION" in record:
        question, answer = record["QUESTION"], record["LONG_ANSWER"]
        contexts, labels, meshes = record["CONTEXTS"], record["LABELS"], record["MESHES"]
    else:
        question, answer, nested = record["question"], record["long_answer"], record["context"]
        contexts, labels, meshes = nested["contexts"], nested["labels"], nested["meshes"]
    pmid = well_formed(_text(record["pubid"]))
    return Item(
        root_id=pmid,
        fields={
            "question": _text(question),
            "long_answer": _text(answer),
            "final_decision": _text(record["final_decision"]),
            "context": "\n\n".join(contexts),
            "labels": ", ".join(labels),
            "meshes": ", ".join(meshes),
            "pmid": pmid,
        },
    )


_ADAPTERS: Mapping[str, Callable[[Mapping[str, Any]], Item]] = {"pubmedqa": _pubmedqa}
FIELDS: Mapping[str, frozenset[str]] = {
    "pubmedqa": frozenset({"question", "long_answer", "final_decision", "context", "labels", "meshes", "pmid"}),
}
