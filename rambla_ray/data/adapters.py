"""Adapters: from a record of a public layout to an item, with the fields, joins and order that RAmBLA uses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.data import cells
from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import Item, well_formed

Record = Mapping[str, Any]
OTHER_FILE = "give another file with task.dataset.path=<file>"


def adapt(records: Sequence[Any], config: DatasetConfig, where: str) -> list[Item]:
    """One item per record. Raises UserError, naming the row (counted from 1), for one that is not of the layout."""
    adapter = _ADAPTERS.get(config.format) or _table_adapter(records, config)
    items = []
    for row, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise TypeError("it is not an object with keys and values")
            items.append(adapter(record, row))
        except KeyError as error:
            key = str(error.args[0])
            raise UserError(
                f"{where} lacks '{key}' in row {row + 1}, which format {config.format} needs; "
                f"{choose_from(key, map(str, record))}"
            ) from None
        except RecursionError:
            raise UserError(f"{where} row {row + 1}: its values are nested too deeply; {OTHER_FILE}") from None
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is not in the layout that format {config.format} reads: row {row + 1}: {error}"
            ) from None
        except cells.NotText as error:
            columns = (name for name in (*config.fields, *record) if name in record)
            column = next(name for name in columns if not cells.is_text(record[name]))
            raise UserError(
                f"{where} row {row + 1}: column '{column}' {error}; correct the file, or leave it out"
            ) from None
        except ValueError as error:
            raise UserError(f"{where} row {row + 1}: {error}; correct the file, or leave the row out") from None
    return items


def _first(record: Record, columns: Sequence[str]) -> tuple[str, Any]:
    """Of the names that a column has in different releases, the first that the record has, and its value."""
    column = next((column for column in columns if column in record), None)
    if column is None:
        raise KeyError("' or '".join(columns))
    return column, record[column]


def _pubmedqa(record: Record, row: int) -> Item:
    """PubMedQA, from the GitHub release (upper-case keys) or the hub (nested `context`).

    Source: Jin et al. 2019, https://github.com/pubmedqa/pubmedqa.
    """
    if "QUESTION" in record:
        question, answer = record["QUESTION"], record["LONG_ANSWER"]
        contexts, labels, meshes = record["CONTEXTS"], record["LABELS"], record["MESHES"]
    else:
        question, answer, nested = record["question"], record["long_answer"], record["context"]
        contexts, labels, meshes = nested["contexts"], nested["labels"], nested["meshes"]
    pmid = cells.identifier(record["pubid"], "pubid")
    return Item(
        root_id=pmid,
        fields={
            "question": cells.text(question),
            "long_answer": cells.text(answer),
            "final_decision": cells.text(record["final_decision"]),
            "context": "\n\n".join(cells.texts(contexts)),
            "labels": ", ".join(cells.texts(labels)),
            "meshes": ", ".join(cells.texts(meshes)),
            "pmid": pmid,
        },
    )


def _bioasq(record: Record, row: int) -> Item:
    """BioASQ task B, from the training files of any year, or the test files with their golden answers.

    The answer is the first ideal answer. The context is all snippets, with a blank line between two; RAmBLA joins
    them with nothing, so that the last word of one and the first of the next run together. A question without an
    ideal answer cannot be asked: its item has a fault. A question without an id gets one from its text.

    Source: Tsatsaronis et al. 2015, http://participants-area.bioasq.org/general_information/Task11b/.
    """
    question, texts = cells.text(record["body"]), _snippet_texts(record.get("snippets"))
    own_id = record.get("id")
    if not cells.is_missing(own_id):
        root_id = cells.identifier(own_id, "id")
    elif question.strip():
        root_id = hashlib.sha256(well_formed(question).encode()).hexdigest()[:24]
    else:
        raise ValueError("it has neither an id nor a body")
    answer = _first_ideal_answer(record.get("ideal_answer"))
    return Item(
        root_id=root_id,
        fields={
            "question": question,
            "answer": answer,
            "context": "\n\n".join(text for text in texts if text),
            "label": "1",
            "id": root_id,
        },
        fault="" if answer.strip() else "ideal_answer: there is none to compare with",
    )


def _first_ideal_answer(ideal: Any) -> str:
    """The first of a question's ideal answers, which may stand alone or in a list; empty where there is none."""
    if cells.is_missing(ideal):
        return ""
    if isinstance(ideal, str | bytes):
        return cells.text(ideal)
    return next(iter(cells.texts(ideal)), "")


def _snippet_texts(snippets: Any) -> list[str]:
    if snippets is None:
        return []
    if isinstance(snippets, Mapping):  # Some versions of the hub's library turn a list of objects into this.
        return cells.texts(snippets["text"])
    return [cells.text(snippet["text"]) for snippet in snippets]


_ENTAILMENT = {word: word for word in ("entailment", "neutral", "contradiction")}
_ENTAILMENT |= dict(zip("012", tuple(_ENTAILMENT), strict=True))


def _sick(record: Record, row: int) -> Item:
    """SICK, from the release (SemEval's three files, or the whole in one) or the hub.

    The label is "1" for entailment, else "0". The score (1 to 5) is written with at most six digits, so that the hub's
    single precision gives what the release says.

    Source: Marelli et al. 2014, https://aclanthology.org/L14-1314/.
    """
    column, judged = _first(record, ("entailment_judgment", "entailment_label", "label"))
    entailment = cells.one_of(judged, column, _ENTAILMENT)
    score = cells.text(record["relatedness_score"])
    try:
        score = f"{float(score):.6g}" if score.strip() else ""
    except ValueError:
        raise ValueError(f"its relatedness_score is {score[:60]!r}, and not a number") from None
    column, pair_id = _first(record, ("pair_ID", "id"))
    return Item(
        root_id=cells.identifier(pair_id, column),
        fields={
            "text_1": cells.text(record["sentence_A"]),
            "text_2": cells.text(record["sentence_B"]),
            "label": "1" if entailment == "entailment" else "0",
            "relatedness_score": score,
            "entailment": entailment,
        },
    )


_PARAPHRASE = {"0": "0", "1": "1", "not_equivalent": "0", "equivalent": "1"}


def _mrpc(record: Record, row: int) -> Item:
    """MRPC, from the hub's GLUE, or the MSR release, where the row's number (from 0) is what GLUE calls idx.

    Source: Dolan and Brockett 2005, https://aclanthology.org/I05-5002/.
    """
    if "#1 String" in record:
        idx, text_1, text_2 = str(row), record["#1 String"], record["#2 String"]
        label = cells.one_of(record["Quality"], "Quality", _PARAPHRASE)
    else:
        idx, text_1, text_2 = cells.identifier(record["idx"], "idx"), record["sentence1"], record["sentence2"]
        label = cells.one_of(record["label"], "label", _PARAPHRASE)
    return Item(
        root_id=idx, fields={"text_1": cells.text(text_1), "text_2": cells.text(text_2), "label": label, "idx": idx}
    )


def _table_adapter(records: Sequence[Any], config: DatasetConfig) -> Callable[[Record, int], Item]:
    rows = [record for record in records if isinstance(record, Mapping)]
    return partial(
        _table,
        id_column=config.id_column or "id",
        fields=config.fields,
        columns=frozenset(column for row in rows for column in row),
        integers=frozenset(name for name in config.fields if cells.lost_integers([row.get(name) for row in rows])),
    )


def _table(
    record: Record,
    row: int,
    *,
    id_column: str,
    fields: Sequence[str],
    columns: frozenset[str],
    integers: frozenset[str],
) -> Item:
    """Any table: the declared columns as they are; a cell that its row lacks is empty.

    Raises:
        KeyError: a column that no row has.
    """
    for column in (id_column, *fields):
        if column not in columns:
            raise KeyError(column)
    return Item(
        root_id=cells.identifier(record.get(id_column), id_column),
        fields={name: (cells.whole if name in integers else cells.text)(record.get(name)) for name in fields},
    )


_ADAPTERS: Mapping[str, Callable[[Record, int], Item]] = {
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
    "sick": _sick,
    "mrpc": _mrpc,
}
ID_COLUMNS: Mapping[str, str] = {"pubmedqa": "pubid", "mrpc": "idx"}  # Where the column of ids is not `id`.
