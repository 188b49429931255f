"""The encoder of workers that train: it says what the encoder is and reads no text, because the store has all features.

So a worker needs neither the weights nor their memory, and a text that the store lacks is an error and not a second
pass of the encoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import torch

from ytuning.data.dataset import TextInput
from ytuning.data.places import is_remote
from ytuning.encoder.encoder import Encoder
from ytuning.errors import InputError, argument, quantity
from ytuning.features.store import FeatureStore

__all__ = ["StoredEncoder"]

SHARE_IT = "Set YTUNING_CACHE to a folder or an address that all machines share, and remove no features from it"


class StoredEncoder(Encoder):
    """What another process needs to know of an encoder whose features are stored; it can be sent there.

    Args:
        encoder: the encoder.
        store: has the features of all texts that will be asked for.
    """

    def __init__(self, encoder: Encoder, store: FeatureStore) -> None:
        # The parts that compute are left out.
        self.identity, self.device = encoder.identity, encoder.device
        self._depth, self._store, self._root = encoder.depth, store.name, store.root

    @property
    def depth(self) -> int:
        """Layers that the encoder has."""
        return self._depth

    def release(self) -> None:
        """Nothing: there are no weights."""

    def tokenize(self, inputs: Sequence[TextInput]) -> NoReturn:
        """Refuse to read texts.

        Raises:
            InputError: the store lacks these texts.
        """
        raise InputError(
            f"the worker does not find the features of {quantity(len(inputs), 'text')} in the store {self._store}. "
            f"{SHARE_IT}"
        )

    def check(self) -> None:
        """Whether this machine has the store, and the kind of device that heads are trained on.

        Raises:
            InputError: it has not.
        """
        # The copies of a store in an object store are made here when they are needed.
        if not is_remote(self._store) and not os.path.isdir(self._root):
            raise InputError(f"the machine of the worker has no feature store {self._store}. {SHARE_IT}")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "the worker has no GPU, and this process trains on one, so the heads would differ. Give "
                f"{argument('worker_gpus', 1)}, or start the run where there is no GPU"
            )
