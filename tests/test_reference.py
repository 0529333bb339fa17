"""docs/models.md: every key of every kind of model, as the code has it."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import reference as job
from pydantic import Field

from rambla_ray.config.model import ModelConfig
from rambla_ray.registry import MODEL_MAP, model_class
from rambla_ray.run.reference import MARK, keys_of, reference, renewed
from rambla_ray.tasks.closed import Closed

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def test_the_page_says_what_the_code_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(MARK) == 1
    assert page == renewed(page), "docs/models.md is out of date: python jobs/reference.py writes it anew"


def test_what_is_written_by_hand_stays() -> None:
    assert renewed(f"# Mine\n\n{MARK}\n\nold") == f"# Mine\n\n{MARK}\n\n{reference()}"
    assert renewed("# Mine\n\n").startswith(f"# Mine\n\n{MARK}\n\n## ")


def section(heading: str) -> str:
    """What stands below a heading of the second level."""
    return reference().partition(f"## {heading}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", sorted(MODEL_MAP))
def test_each_kind_is_listed_with_all_its_keys(name: str) -> None:
    (heading,) = [line for line in reference().splitlines() if line.startswith("## ") and f"`{name}`" in line]
    keys = re.findall(r"^\| `(\w+)` \|", section(heading.removeprefix("## ")), flags=re.MULTILINE)
    assert keys == list(model_class(name).Params.model_fields)


@pytest.mark.parametrize("key", sorted(ModelConfig.model_fields.keys() - {"name", "params"}))
def test_each_section_of_a_model_config_has_a_table(key: str) -> None:
    assert "| key | value | default | what it is |" in section(key)


def test_every_key_is_described() -> None:
    bare = [line for line in reference().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert bare == []


def test_every_link_leads_somewhere() -> None:
    headings = set(re.findall(r"^## (.+)$", reference(), flags=re.MULTILINE))
    links = set(re.findall(r"\]\(#(\w+)\)", reference()))
    assert links
    assert links - headings == set()


class Colour(StrEnum):
    RED = "red"


class Inner(Closed):
    size: int = Field(3, ge=0, le=10, description="how large")


class Outer(Closed):
    share: float = Field(gt=0, le=1, description="of | all")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="of draws")
    count: int | None = Field(None, gt=0, le=10**6, description="null is no count")
    least: float = Field(1e-9, ge=1e-9, le=180.0, description="")
    top: float | None = Field(0.95, ge=0, le=1, description="may be left out")
    kind: Literal["a", "b"] = Field("a", description="which")
    colour: Colour = Field(Colour.RED, description="an enum")
    size: Annotated[int, Field(le=100)] | Literal["auto"] = Field("auto", description="two kinds")
    stop: str | list[str] | None = Field(None, description="<end>")
    body: dict[str, Any] = Field(default_factory=dict, description="free")
    words: dict[str, str] = Field({"a": "b"}, description="of text")
    name: str = Field("x", max_length=1000, pattern="^(a|b)$", description="a name")
    on: bool = Field(True, description="a switch")
    inner: Inner = Field(default_factory=Inner, description="inside")


@pytest.mark.parametrize(
    "row",
    [
        r"| `share` | number, above 0, up to 1 | required | of \| all |",
        "| `seed` | whole number, from -2^63, below 2^63 | `0` | of draws |",
        "| `count` | whole number, 1 to 1,000,000 | `null` | null is no count |",
        "| `least` | number, 0.000000001 to 180 | `1e-09` |  |",
        "| `top` | number, 0 to 1, or `null` | `0.95` | may be left out |",
        "| `kind` | `a`, `b` | `a` | which |",
        "| `colour` | `red` | `red` | an enum |",
        "| `size` | whole number, up to 100, or `auto` | `auto` | two kinds |",
        r"| `stop` | text or list of text | `null` | \<end> |",
        "| `body` | keys and values | `{}` | free |",
        '| `words` | keys and values, each text | `{"a": "b"}` | of text |',
        r"| `name` | text, up to 1,000 characters, of the form `(a\|b)` | `x` | a name |",
        "| `on` | `true` or `false` | `true` | a switch |",
        "| `inner` | [section](#inner) |  | inside |",
    ],
)
def test_a_key_is_said_in_plain_words(row: str) -> None:
    assert row in keys_of(Outer).splitlines()


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "models.md"
    page.write_text("# By hand\n\n", encoding="utf-8")
    monkeypatch.setattr(job, "PAGE", page)
    assert job.main(["--help"]) == 0
    assert page.read_text(encoding="utf-8") == "# By hand\n\n"
    assert job.main(["--now"]) == 1
    assert job.main([]) == 0
    assert page.read_text(encoding="utf-8") == renewed("# By hand\n\n")
