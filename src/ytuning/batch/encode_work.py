"""What a worker does for encoding: it reads the texts of a unit, and stores the features of those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ytuning.batch.inputs import read_part
from ytuning.batch.plan import MOST_UNIT_ROWS, Unit, check_rows
from ytuning.data.dataset import TextInput
from ytuning.data.places import open_folder
from ytuning.heads.pairs import PairChoice
from ytuning.progress import Progress
from ytuning.system.machine import keep_few_compiled_shapes, versions

__all__ = ["EncodeReport", "EncodeUnit", "EncodeWork"]


@dataclass(frozen=True)
class EncodeUnit:
    """A unit with all that a worker needs to know for it.

    Attributes:
        unit: the unit.
        input: address of the folder of its file.
        text, text_pair: columns of the texts; ``text_pair`` is None for single texts.
    """

    unit: Unit
    input: str
    text: str
    text_pair: str | None


@dataclass(frozen=True)
class EncodeReport:
    """What became of a unit, or of several.

    Attributes:
        rows: rows that were read.
        stored: distinct texts of a unit that were stored before, as often as pairs are read in another way.
        encoded: those that the encoder has read.
    """

    rows: int = 0
    stored: int = 0
    encoded: int = 0

    def __add__(self, other: EncodeReport) -> EncodeReport:
        return EncodeReport(self.rows + other.rows, self.stored + other.stored, self.encoded + other.encoded)


@dataclass(frozen=True)
class EncodeWork:
    """The encoder that workers load, and what they keep of it.

    Attributes:
        encoder: name or folder.
        precision, long_text: as of `encoder.load_encoder`.
        layers: numbers of the hidden states to keep, as of `Encoder.resolve_states`.
        pairs: how pairs are read; "auto" stores what a training with ``--pairs auto`` reads.
        codec: codec of the store.
        cache: folder of the feature store; None for the default one.
    """

    encoder: str
    precision: Literal["auto", "fp32", "bf16"]
    long_text: Literal["truncate", "window"]
    layers: tuple[int, ...] | None
    pairs: PairChoice
    codec: str
    cache: str | None

    def start(self) -> EncodeWorker:
        """Load the encoder."""
        keep_few_compiled_shapes()
        return EncodeWorker(self)


class EncodeWorker:
    """A loaded encoder and the feature store; see `pool.Worker`."""

    def __init__(self, work: EncodeWork) -> None:
        from ytuning.encoder.encoder import load_encoder
        from ytuning.features.store import FeatureStore

        self._work = work
        self._encoder = load_encoder(work.encoder, precision=work.precision, long_text=work.long_text)
        self._states = self._encoder.resolve_states(work.layers)
        self._features = FeatureStore(work.cache)
        self._features.check_codec(work.codec)
        identity = self._encoder.identity
        self.about: dict[str, Any] = {
            "precision": identity.precision,
            "encoder": identity.fingerprint,
            "states": self._states,
            "cache": self._features.name,
            "versions": versions(),
        }

    def __call__(self, given: EncodeUnit, tell: Callable[[int], None]) -> EncodeReport:
        """Store the features of the texts of a unit.

        Raises:
            DataError: a row is wrong.
            StoreError: the store is full or cannot be written.
        """
        columns = [given.text, *([given.text_pair] if given.text_pair else [])]
        inputs: list[TextInput] = []
        report, folder = EncodeReport(), open_folder(given.input)
        for table, _ in read_part(folder, given.unit.path, given.unit.part, columns):
            texts = [table.column(name).texts("text", blank=True) for name in columns]
            inputs += zip(texts[0], texts[1] if len(texts) > 1 else [None] * table.rows, strict=True)
            # A packed file of any size is one unit, and its texts need not all be held.
            if len(inputs) >= MOST_UNIT_ROWS:
                report += self._store_texts(inputs, tell)
                inputs = []
        report += self._store_texts(inputs, tell)
        check_rows(given.unit, folder, report.rows)
        return report

    def _store_texts(self, inputs: Sequence[TextInput], tell: Callable[[int], None]) -> EncodeReport:
        """Store the features of texts, or of pairs in each way that they are read."""
        from ytuning.features.features import stored_inputs
        from ytuning.tasks.choices import pair_modes

        report = EncodeReport(rows=len(inputs))
        modes = pair_modes(self._work.pairs, has_pairs=any(pair is not None for _, pair in inputs))
        for mode in modes if inputs else ():
            _, use = stored_inputs(
                inputs,
                self._encoder,
                self._features,
                _RowsProgress(tell, len(inputs) / len(modes)),
                states=self._states,
                pair_mode=mode,
                codec=self._work.codec,
            )
            report += EncodeReport(0, use.hits, use.misses)
        return report


class _RowsProgress(Progress):
    """Tells of rows in proportion to the texts that have been encoded."""

    def __init__(self, tell: Callable[[int], None], rows: float) -> None:
        self._tell, self._rows, self._told = tell, rows, 0

    def step(self, stage: str, done: int, total: int, note: str = "") -> None:
        rows = int(self._rows * done / max(total, 1))
        if rows > self._told:
            self._tell(rows - self._told)
            self._told = rows
