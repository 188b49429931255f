"""Many heads trained together against one, and one after the other, on the same stored features.

python -m benchmarks.stacked_heads --data ../shared/data --out results

All heads get all steps of the recipe, refit included. ``one_by_one`` is the time of one head times their number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import bar, head_option, in_turn, medians, parser, recipe, rows_of, seconds
from benchmarks.machine import record
from ytuning.data.kinds import SingleLabel
from ytuning.data.labels import LabelSet
from ytuning.data.splits import MOST_HELD_OUT, split_holdout
from ytuning.encoder.encoder import load_encoder
from ytuning.features.features import stored_features
from ytuning.features.store import FeatureStore
from ytuning.progress import Progress
from ytuning.training.fit import HeadJob, fit_heads
from ytuning.training.recipes import Recipe, preset

WANTED = 5.0  # times one head, for 16 on SST-2


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, rounds=1)
    head_option(options)
    options.add_argument("--sets", nargs="+", default=["sst2"])
    options.add_argument("--heads", type=int, default=16)
    options.add_argument("--rows", type=int, help="of each set's train rows; default: all")
    arguments = options.parse_args(argv)
    found = [
        one_set(name, form, made, arguments)
        for name in arguments.sets
        for form, made in (("default", recipe(arguments)), ("paper", preset("paper")))
        if form == "default" or arguments.head_steps is None
    ]
    bars = [
        bar(
            f"{entry['heads']} heads against 1, {entry['preset']}, {entry['set']}",
            entry["many_over_one"],
            at_most=WANTED,
        )
        for entry in found
    ]
    record("stacked_heads", found, arguments.out, bars)


def one_set(name: str, form: str, made: Recipe, arguments: Any) -> dict[str, Any]:
    """Seconds of one head and of many, in turn."""
    train = rows_of(arguments.data / name, "train", arguments.rows)
    encoder = load_encoder(arguments.encoder)
    target = SingleLabel(LabelSet.from_labels(train.names))
    truth = target.encode(train.names)
    rows, held = split_holdout(train, 0, most=MOST_HELD_OUT)
    with tempfile.TemporaryDirectory() as root:
        states, store = encoder.resolve_states(made.layers), FeatureStore(root)
        features = stored_features(train.inputs, encoder, store, Progress(), states=states)[0]

        def fit(count: int) -> float:
            jobs = [HeadJob(target, truth, made, seed) for seed in range(count)]
            return seconds(lambda: fit_heads(features, jobs, train=rows, validation=held))

        times = in_turn(arguments.rounds, {"one": lambda: fit(1), "many": lambda: fit(arguments.heads)})
    middle = medians(times)
    return {
        "set": name,
        "preset": form,
        "rows": len(train),
        "heads": arguments.heads,
        "seconds": times,
        "many_over_one": middle["many"] / middle["one"],
        "many_over_one_by_one": middle["many"] / (middle["one"] * arguments.heads),
    }


if __name__ == "__main__":
    main()
