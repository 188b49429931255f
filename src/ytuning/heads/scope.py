"""How unlike the texts of its training rows a text is to a task: its out-of-scope score. A pure module without I/O.

Two distances are standardised on validation rows and added:

* The distance of a text's direction, which is that of the mean token in the last hidden state that the task reads,
  from the nearest of a few prototypes. These are the mean directions of groups of training texts. It tells texts of
  other topics and of other kinds, whatever the labels are.
* What the logits say. Logits of a light head are linear in the pools that all tasks share, so their relative
  Mahalanobis distance (arXiv 2106.09022) is that of the pools along the directions which tell labels apart. Other heads
  fit their own training rows too closely for that, so theirs give their free energy (arXiv 2010.03759). It tells texts
  of a label that the task does not have, and the more labels the task has the better it does.

Shapes: B texts, T tokens, D encoder width, C labels, M prototypes, S numbers of a direction: D, or 2 D for a pair that
is read separately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ytuning.heads.pairs import PairMode

__all__ = [
    "MOST_SHARE",
    "JointScopes",
    "LabelGaussians",
    "ScopeModel",
    "directions",
    "label_share",
    "prototype_distances",
]

# The logits' share of the squared weights is c / (c + LABELS_ALIKE), c being the labels beyond two. Two labels say
# nothing of other texts. Chosen on training rows of BANKING77 with 20 labels left out, and of TREC-6, AG News, CoLA and
# SST-2 against each other's texts (benchmarks/LOG.md).
LABELS_ALIKE = 20
NUMBERS, GAUSSIANS = ("temperature", "labels", "share", "threshold"), ("means", "within", "center", "whole")
# The largest share of the texts in scope that a task may take for others.
MOST_SHARE = 0.5
# Prototypes of several tasks that are multiplied at a time.
JOINT_ROWS = 2048


def directions(values: Tensor, mask: Tensor, pair_mode: PairMode | None) -> Tensor:
    """The directions (B, S) float32 of texts, from one hidden state of their tokens (B, T, 1, D) with mask (B, T).

    Of pairs that are read separately there are 2 * B of both, and the directions of both texts stand side by side.
    """
    # (B, 1, T): the shares of the tokens in the mean. Values beyond the mask are finite, so that they count nothing.
    shares = (mask / mask.sum(1, keepdim=True)).float()[:, None]
    means = functional.normalize(torch.bmm(shares, values[:, :, 0].float())[:, 0], dim=1)
    return torch.cat(means.chunk(2), 1) if pair_mode == "separate" else means


def label_share(labels: int) -> float:
    """The share of the logits in the squared weights of both distances, by the number of labels."""
    return max(0, labels - 2) / (max(0, labels - 2) + LABELS_ALIKE)


@dataclass(frozen=True)
class LabelGaussians:
    """Where the logits of the labels' training rows lie, as normal distributions with one covariance.

    Attributes:
        means: (C, C) float32, mean logits of the rows of each label, in the coordinates of ``within``.
        within: (C, C) float32, the map that makes the covariance of a label's rows the identity.
        center: (C,) float32, mean logits of all rows.
        whole: (C, C) float32, the map that makes the covariance of all rows the identity.
    """

    means: Tensor
    within: Tensor
    center: Tensor
    whole: Tensor

    def distances(self, logits: Tensor) -> Tensor:
        """The relative Mahalanobis distance (..., B) of logits (..., B, C); fields of several tasks may be stacked.

        It is the squared distance from the nearest label less that from all rows.
        """
        inside = logits @ self.within
        # (..., B, C): |a - b|^2 = |a|^2 - 2 a b + |b|^2
        from_labels = (
            inside.square().sum(-1, keepdim=True)
            - 2 * inside @ self.means.transpose(-1, -2)
            + self.means.square().sum(-1)[..., None, :]
        )
        from_all = ((logits - self.center[..., None, :]) @ self.whole).square().sum(-1)
        return from_labels.amin(-1) - from_all


@dataclass(frozen=True)
class ScopeModel:
    """What a task knows of the texts that it was made for.

    Attributes:
        prototypes: (M, S) int8, directions whose lengths say nothing.
        standard: (2, 2) float64, mean and deviation on validation rows of the distance from the prototypes, and of what
            the logits say.
        temperature: divisor of the logits before their free energy is taken.
        labels: C where the logits count, else 0.
        gaussians: of a light head; None where the free energy is taken.
        share: share of the texts in scope that may be taken for others; None: nobody has asked for a threshold.
        threshold: score above which a text is out of scope; None as of ``share``.
    """

    prototypes: Tensor
    standard: Tensor
    temperature: float = 1.0
    labels: int = 0
    gaussians: LabelGaussians | None = None
    share: float | None = None
    threshold: float | None = None

    def scores(self, texts: Tensor, logits: Tensor) -> Tensor:
        """Scores (B,) float32 of texts with directions (B, S) and logits (B, C).

        A score of 0 is that of a usual text. On validation rows the deviation is about 1.
        """
        return self.combine(prototype_distances(texts, self.prototypes), self.label_distances(logits))

    def label_distances(self, logits: Tensor) -> Tensor | None:
        """What the logits (B, C) say, (B,); None where they do not count."""
        if not self.labels:
            return None
        if self.gaussians is not None:
            return self.gaussians.distances(logits.float())
        return -torch.logsumexp(logits.float() / self.temperature, 1)

    def combine(self, from_texts: Tensor, from_labels: Tensor | None) -> Tensor:
        """The scores (B,) of the distances (B,) from the prototypes and of what the logits say (B,)."""
        (mean, deviation), (label_mean, label_deviation) = self.standard.tolist()
        scores = (from_texts - mean) / deviation
        if from_labels is None:
            return scores
        share = label_share(self.labels)
        return math.sqrt(1 - share) * scores + math.sqrt(share) * (from_labels - label_mean) / label_deviation

    def are_out_of_scope(self, scores: np.ndarray) -> np.ndarray | None:
        """Which texts (B,) bool are out of scope by their scores (B,) float32; None without a threshold."""
        return None if self.threshold is None else scores > np.float32(self.threshold)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as :meth:`from_parts` takes them."""
        gaussians = {} if self.gaussians is None else vars(self.gaussians)
        return {"prototypes": self.prototypes, "standard": self.standard, **gaussians}

    def to_json(self) -> dict[str, float | None]:
        """The numbers by name, as :meth:`from_parts` takes them."""
        return {name: getattr(self, name) for name in NUMBERS}

    @classmethod
    def from_parts(cls, numbers: Any, tensors: Mapping[str, Tensor], *, width: int, outputs: int) -> ScopeModel:
        """The inverse of :attr:`tensors` and :meth:`to_json`.

        Args:
            numbers: what a file says, which may be anything.
            tensors: what a file holds.
            width: S, the number of numbers of a direction.
            outputs: C, the number of the task's logits.

        Raises:
            ValueError: a field is missing, unknown or out of its range, or a tensor has another shape or type.
        """
        if not isinstance(numbers, dict) or set(numbers) != set(NUMBERS):
            raise ValueError(f"a scope has {', '.join(NUMBERS)}")
        for name, value in numbers.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # False for what is not finite, too; a whole number may be too large for any float.
            is_number = is_number and abs(value) <= torch.finfo(torch.float32).max
            if not is_number and not (value is None and name in ("share", "threshold")):
                raise ValueError(f"{name} of a scope must be a number")
        if numbers["labels"] not in (0, outputs) or not numbers["temperature"] > 0:
            raise ValueError(f"labels of a scope must be 0 or {outputs}, and its temperature above 0")
        if (numbers["share"] is None) != (numbers["threshold"] is None):
            raise ValueError("a scope has both a share and a threshold, or neither")
        if numbers["share"] is not None and not 0 < numbers["share"] <= MOST_SHARE:
            raise ValueError(f"the share of a scope must be above 0 and at most {MOST_SHARE}")
        # The shape and the type of each tensor; None: any size.
        wanted: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
            "prototypes": (torch.int8, (None, width)),
            "standard": (torch.float64, (2, 2)),
        }
        if set(tensors) != set(wanted):
            wanted |= {name: (torch.float32, (outputs, outputs)) for name in GAUSSIANS}
            wanted["center"] = (torch.float32, (outputs,))
        if set(tensors) != set(wanted):
            raise ValueError(f"tensors of a scope must be {', '.join(sorted(wanted))}")
        for name, (dtype, shape) in wanted.items():
            tensor = tensors[name]
            fits = tensor.ndim == len(shape) and all(
                size in (given, None) for given, size in zip(tensor.shape, shape, strict=True)
            )
            if not (fits and tensor.dtype == dtype and len(tensor) and bool(tensor.isfinite().all())):
                raise ValueError(f"the scope's {name} has another shape or type, or is not finite")
        if not bool((tensors["standard"][:, 1] > 0).all()):
            raise ValueError("deviations of a scope must be above 0")
        gaussians = LabelGaussians(**{name: tensors[name] for name in GAUSSIANS}) if "means" in tensors else None
        return cls(tensors["prototypes"], tensors["standard"], gaussians=gaussians, **numbers)

    def with_label(self, prototypes: Tensor) -> ScopeModel:
        """The model of the task with one more label, whose texts have prototypes (m, S) int8; not of light heads."""
        labels = self.labels + 1 if self.labels else 0
        return replace(self, prototypes=torch.cat((self.prototypes, prototypes)), labels=labels)

    def without_label(self) -> ScopeModel:
        """The model of the task with one label less, whose texts stay near to prototypes; not of light heads."""
        return replace(self, labels=self.labels - 1 if self.labels > 3 else 0)


def prototype_distances(texts: Tensor, prototypes: Tensor) -> Tensor:
    """The distance (B,) of directions (B, S) from the nearest of prototypes (M, S): 1 less the cosine."""
    return 1 - _cosines(texts, prototypes).amax(0)


def _cosines(texts: Tensor, prototypes: Tensor) -> Tensor:
    """The cosines (M, B) of the angles between prototypes (M, S) and directions (B, S)."""
    return functional.normalize(prototypes.float(), dim=1) @ functional.normalize(texts, dim=1).T


class JointScopes:
    """The scope models of several tasks that read the same texts in the same hidden state: few large products."""

    def __init__(self, models: Sequence[ScopeModel]) -> None:
        """Join ``models``, whose prototypes have the same number of numbers."""
        self._models = list(models)
        # (sum of M, S) int8, so that hundreds of tasks take little memory.
        self._prototypes = torch.cat([model.prototypes for model in models])
        self._counts = torch.tensor([len(model.prototypes) for model in models])
        # Models of light heads with the same number of labels are stacked.
        alike: dict[int, list[int]] = {}
        for number, model in enumerate(models):
            if model.gaussians is not None:
                alike.setdefault(model.labels, []).append(number)
        self._stacked = [
            (
                numbers,
                LabelGaussians(
                    *(
                        torch.stack([getattr(models[number].gaussians, name) for number in numbers])
                        for name in GAUSSIANS
                    )
                ),
            )
            for numbers in alike.values()
        ]

    @property
    def size(self) -> int:
        """Bytes beyond those of the models themselves."""
        stacked = (tensor for _, gaussians in self._stacked for tensor in vars(gaussians).values())
        return sum(tensor.nbytes for tensor in (self._prototypes, *stacked))

    def scores(self, texts: Tensor, logits: Sequence[Tensor]) -> list[Tensor]:
        """The scores (B,) of each model for texts with directions (B, S) and with logits (B, C) of each task."""
        # (sum of M, B), in parts that stay in the cache in float32.
        cosines = torch.cat([_cosines(texts, part) for part in self._prototypes.split(JOINT_ROWS)])
        from_texts = 1 - torch.segment_reduce(cosines, "max", lengths=self._counts)
        from_labels: dict[int, Tensor | None] = {}
        for numbers, gaussians in self._stacked:
            together = gaussians.distances(torch.stack([logits[number].float() for number in numbers]))
            from_labels |= dict(zip(numbers, together, strict=True))
        return [
            model.combine(
                from_texts[number],
                from_labels[number] if number in from_labels else model.label_distances(logits[number]),
            )
            for number, model in enumerate(self._models)
        ]
