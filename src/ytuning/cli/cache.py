"""``ytuning cache``: list, check and remove stored features."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ytuning.cli.console import print_json, shown_progress
from ytuning.cli.options import Json, Quiet
from ytuning.errors import InputError, StoreError, quantity

__all__ = ["cache"]

cache = typer.Typer(
    rich_markup_mode="markdown",
    help="Manage the feature store: the folder $YTUNING_CACHE, or the cache folder of the system.",
    no_args_is_help=True,
)


@cache.command("list", epilog="Example: ytuning cache list")
def cache_list(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the stored features of each encoder and the format they are stored in."""
    from ytuning.features.store import FeatureStore

    store = FeatureStore()
    unreadable: list[StoreError] = []
    rows = [
        {
            "fingerprint": space.folder.name,
            "codec": space.codec_name,
            "encoder": space.identity["name"],
            "layers": list(space.states),
            **{key: space.identity[key] for key in ("precision", "max_length")},
            "texts": len(space),
            "tokens": space.tokens,
            "bytes": space.size,
            "shards": space.shards,
        }
        for space in store.spaces(unreadable.append)
    ]
    if as_json:
        print_json({"root": store.name, "spaces": rows, "unreadable": [str(problem) for problem in unreadable]})
    else:
        print(f"Feature cache: {store.name}{'' if rows or unreadable else '. It is empty.'}")
        for row in rows:
            sizes = f"{quantity(row['texts'], 'text')}, {quantity(row['tokens'], 'token')}"
            print(
                f"{row['fingerprint']}  {row['encoder']}  layers {', '.join(map(str, row['layers']))}, "
                f"{row['precision']}, {row['max_length']} tokens, stored as {row['codec']}: {sizes}, "
                f"{row['bytes'] / 1e6:,.1f} MB in {quantity(row['shards'], 'shard')}"
            )
    _tell_unreadable(unreadable)


def _tell_unreadable(problems: list[StoreError]) -> None:
    """Name the features that could not be read; if there are any, the command has failed."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@cache.command("verify", epilog="Example: ytuning cache verify")
def cache_verify(as_json: Json = False, quiet: Quiet = False) -> None:
    """Compare every stored file with its checksum.

    Damaged files are set aside, and their texts are encoded again when they are needed.
    """
    from ytuning.features.store import FeatureStore

    checked, damages = 0, []
    unreadable: list[StoreError] = []
    with shown_progress(quiet) as progress:
        for space in FeatureStore().spaces(unreadable.append):
            checked += space.shards
            try:
                space.verify()
            except StoreError as problem:
                # One damaged space does not keep the others from being checked.
                unreadable.append(problem)
            # The list also has the damages that were found while the space was opened.
            for damage in space.damages:
                progress.say(str(damage))
            damages.extend(space.damages)
    if as_json:
        damaged = [{"shard": damage.shard, "reason": damage.reason, "folder": str(damage.folder)} for damage in damages]
        print_json({"shards": checked, "damaged": damaged, "unreadable": [str(problem) for problem in unreadable]})
    else:
        print(f"Checked {quantity(checked, 'shard')}; {len(damages)} {'is' if len(damages) == 1 else 'are'} damaged.")
    _tell_unreadable(unreadable)
    if damages:
        raise typer.Exit(1)


@cache.command("remove", epilog="Example: ytuning cache remove 3f2a")
def cache_remove(
    fingerprint: Annotated[
        str | None, typer.Argument(help="Name that `cache list` shows, or the beginning of it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all stored features.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete stored features. They are computed again when they are needed."""
    from ytuning.features.store import FeatureStore

    if (fingerprint is None) == (not everything):
        raise InputError("give either the beginning of a fingerprint (see ytuning cache list) or --all.")
    removed = FeatureStore().remove(fingerprint)
    if as_json:
        print_json({"removed": removed})
    else:
        print(f"Removed {quantity(len(removed), 'feature space')}.")
