"""What a search tries next: Optuna proposes trials a few at a time, from the finished ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ytuning.search.log import Trial
from ytuning.search.space import SHARED, Choices, Interval, Options, Space
from ytuning.system.machine import require

__all__ = ["TOGETHER", "propose", "propose_round"]

# This number of trials is proposed and trained at a time.
TOGETHER = 4
# The first trials are random; after this number Optuna's sampler follows the good ones.
AT_RANDOM = 8


def propose_round(space: Space, done: Sequence[Trial], batches: int, seed: int) -> list[list[Choices]]:
    """Batches of choices that are tried at the same time, after the trials ``done``; the same for the same seed.

    A single batch is what `propose` gives. Each further one counts those before it as pending, so that they differ.
    """
    proposed: list[list[Choices]] = []
    for _ in range(batches):
        pending = [choices for batch in proposed for choices in batch]
        proposed.append(propose(space, done, TOGETHER, seed, pending))
    return proposed


def propose(
    space: Space, done: Sequence[Trial], count: int, seed: int, pending: Sequence[Choices] = ()
) -> list[Choices]:
    """The next choices after the trials ``done``, which differ in what they do not share; the same for the same seed.

    The very first are the first preset's own, and each of the space's openings comes before the sampler is free. A
    study is made anew each time, so that what a search proposes depends on its trials alone and not on whether it was
    ended in between.

    Args:
        space: what there is to choose.
        done: finished trials.
        count: number of choices.
        seed: seed of the search.
        pending: choices that are proposed, and whose trials are not finished.
    """
    optuna = require("optuna", "search")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # Each batch has random numbers of its own, whichever call proposes it.
        sampler_seed = int(np.random.SeedSequence([seed, len(done) + len(pending)]).generate_state(1)[0])
        # Only finished trials say what is good.
        at_random = AT_RANDOM + len(pending)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=sampler_seed, n_startup_trials=at_random))
        # A pending trial counts as bad as the worst one, so that the sampler looks elsewhere (Ginsbourger, Le Riche
        # and Carraro, Kriging is well-suited to parallelize optimization, 2010).
        worst = max((trial.loss for trial in done), default=0.0)
        known = [(trial.choices, trial.loss) for trial in done] + [(choices, worst) for choices in pending]
        for choices, loss in known:
            parameters = space.parameters_of(choices["preset"])
            distributions = {name: _distribution(parameters[name]) for name in choices}
            study.add_trial(optuna.trial.create_trial(params=choices, distributions=distributions, value=loss))
        untried = [
            opening for opening in space.openings if not any(opening.items() <= choices.items() for choices, _ in known)
        ]
        proposed: list[Choices] = []
        for _ in range(count):
            if proposed:
                study.enqueue_trial({name: value for name, value in proposed[0].items() if name in SHARED})
            elif not known:
                study.enqueue_trial(space.start)
            elif untried:
                study.enqueue_trial(untried[0])
            proposed.append(_suggest(space, study.ask()))
        return proposed
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(parameter: Options | Interval) -> Any:
    distributions = require("optuna", "search").distributions
    if isinstance(parameter, Options):
        return distributions.CategoricalDistribution(parameter.values)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _suggest(space: Space, trial: Any) -> Choices:
    """A study's next choices: those of the shared parameters, then of whatever else there is."""

    def suggest(name: str, parameter: Options | Interval) -> Any:
        if isinstance(parameter, Options):
            return trial.suggest_categorical(name, parameter.values)
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)

    chosen = suggest("preset", Options(tuple(space.presets)))
    return {name: suggest(name, parameter) for name, parameter in space.parameters_of(chosen).items()}
