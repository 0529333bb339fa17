"""Writing the samples of a stream: those of each of its targets go to the target's own writer."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.results.sample_writer import Kept, SampleWriter
from rambla_ray.results.served import Served


class StreamWriter:
    """The writers of a stream's targets as one.

    Args:
        writers: by target.
    """

    def __init__(self, writers: Mapping[str, SampleWriter]) -> None:
        self._writers = writers

    @property
    def answered(self) -> Counter[tuple[str, str]]:
        """Per (model, role), the steps with an answer."""
        return sum((writer.answered for writer in self._writers.values()), Counter())

    @property
    def served(self) -> Counter[Served]:
        """Those of them whose reply named who served it, by who that was."""
        return sum((writer.served for writer in self._writers.values()), Counter())

    def add(self, table: pa.Table) -> None:
        """Add ended samples, of any of the targets. Raises NotWritten: no more can be added."""
        if len(self._writers) == 1:
            next(iter(self._writers.values())).add(table)
            return
        for target in table["model"].unique().to_pylist():
            self._writers[target].add(table.filter(pc.equal(table["model"], target)))

    def close(self, kept: Kept | None = None) -> None:
        """Finish the files of all, also where those of one cannot be. Raises NotWritten.

        Args:
            kept: as `SampleWriter.close` takes it.
        """
        with contextlib.ExitStack() as closing:
            for writer in self._writers.values():
                closing.callback(writer.close, kept)
