"""The program where its surroundings are odd: closed streams, names that are not UTF-8, no home, a deleted folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cases are those of Linux' shells and file systems")

# Bytes of latin-1, as old archives have them.
NAME = os.fsdecode("größe".encode("latin-1"))
ESCAPED = r"gr\udcf6\udcdfe"


def shell(folder: Path, redirections: str, *words: object, **environment: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of the program, started in a folder by a shell with some redirections."""
    command = ["sh", "-c", f'"$0" -m ytuning "$@" {redirections}', sys.executable, *words]
    done = subprocess.run(
        [os.fsencode(str(word)) for word in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=100,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def write_rows(file: Path) -> Path:
    file.write_text("text,label\nmy card,card\nmy password,login\nlate refund,refund\n")
    return file


# --- standard streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirections", [">&-", "2>&-", "<&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_closed_or_full_stream_neither_fails_nor_changes_the_others(redirections: str, tmp_path: Path) -> None:
    status, out, err = shell(tmp_path, redirections, "cache", "list", "--json")
    told = "" if ">&-" in redirections.split() else '{"root":'
    assert (status, out[:8], err) == (0, told, "")
    status, out, _ = shell(tmp_path, redirections, "cache", "remove", "missing")
    assert (status, out) == (2, "")


def test_answers_are_written_to_a_file_with_all_streams_closed(served_tasks: Path, tmp_path: Path) -> None:
    words = ["predict", served_tasks / "single", "my card", "--output", "answers.jsonl"]
    assert shell(tmp_path, "<&- >&- 2>&-", *words) == (0, "", "")
    (line,) = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "my card"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_an_encoding_lacks_can_be_printed(encoding: str, served_tasks: Path, tmp_path: Path) -> None:
    words = ["predict", served_tasks / "single", "größe 😀", "--quiet"]
    status, out, _ = shell(tmp_path, "", *words, PYTHONIOENCODING=encoding, LC_ALL="C")
    assert status == 0 and json.loads(out)["text"] == "größe 😀"


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_file_whose_name_is_not_utf8_is_shown_with_escapes(served_tasks: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / f"{NAME}.csv")
    status, out, err = shell(tmp_path, "", "evaluate", served_tasks / "single", file.name, "--quiet")
    assert (status, err) == (0, "") and f"{ESCAPED}.csv" in out


def test_json_gives_a_name_that_is_not_utf8_back(tmp_path: Path) -> None:
    cache = tmp_path / NAME
    status, out, _ = shell(tmp_path, "", "cache", "list", "--json", YTUNING_CACHE=str(cache))
    assert status == 0 and os.fsencode(json.loads(out)["root"]) == os.fsencode(cache)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (NAME, rf"the task folder '{ESCAPED}' cannot name a task: its name has a control character, or bytes that "),
        (
            "a\nb",
            r"the task folder 'a\nb' cannot name a task: its name has a control character, or bytes that are not ",
        ),
        ("x" * 256, f"cannot write the task folder {'x' * 256}: File name too long. Choose another with --out"),
        ("loop", "cannot write the task folder loop: Too many levels of symbolic links. Choose another with --out"),
    ],
    ids=["not-utf8", "control", "long", "loop"],
)
def test_a_task_folder_that_cannot_be_used_is_refused_before_any_work(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    # The training file is missing, which would be found next.
    status, _, err = shell(tmp_path, "", "train", "missing.csv", "--out", name)
    assert status == 2 and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_a_task_in_a_folder_whose_name_is_not_utf8_is_refused(served_tasks: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(served_tasks / "single")
    # A link is named by the folder that it leads to.
    assert shell(tmp_path, "", "predict", NAME, "my card", "--quiet")[0] == 0
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    for file in (served_tasks / "single").iterdir():
        (tmp_path / NAME / file.name).symlink_to(file)
    status, out, err = shell(tmp_path, "", "predict", NAME, "my card", "--quiet")
    assert (status, out) == (2, "") and err.startswith(f"error: the task folder '{ESCAPED}' cannot name a task")


# --- folders --------------------------------------------------------------------------------------------------------

HOMELESS = """
import os, pwd

def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")

pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
    os.environ.pop(name, None)

from ytuning.cli import main

main()
"""


@pytest.mark.parametrize(
    ("words", "store", "message"),
    [
        (["cache", "list"], "", "there is no place for the feature store, because no home directory is known. Set "),
        (["cache", "list"], "store", None),
        (["predict", "TASK", "my card", "--quiet"], "", None),
        (
            ["predict", "TASK", "my card", "--encoder", "some/encoder"],
            "",
            "cannot look for the encoder 'some/encoder': the Hugging Face cache is in the home directory, and none is ",
        ),
    ],
)
def test_a_user_without_a_home(
    words: list[str], store: str, message: str | None, served_tasks: Path, tmp_path: Path
) -> None:
    given = [str(served_tasks / "single") if word == "TASK" else word for word in words]
    command = [sys.executable, "-c", HOMELESS, *given]
    environment = {**os.environ, "YTUNING_CACHE": str(tmp_path / store) if store else ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    if message is None:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode > 0 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_a_deleted_current_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'cd gone && rmdir ../gone && "$0" -m ytuning cache list', sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == (
        "error: the current folder has been deleted. Change to another one and run the command again.\n"
    )
