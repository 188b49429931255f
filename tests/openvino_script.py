"""Target of a subprocess without network and with a home folder of its own: load an encoder in int8 and name its bytes.

usage: python openvino_script.py ENCODER CACHE
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

from ytuning.encoder import load_encoder


def main() -> None:
    asked: list[str] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(repr(address))
        raise OSError("no network here")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    folder, cache = sys.argv[1:]
    encoder = load_encoder(folder, layers=[0, 2, 3], precision="int8", backend="openvino", cache=cache)
    digest = hashlib.sha256()
    for _, features in encoder.encode(encoder.tokenize([("the card is lost", None), ("my money is late", "why")])):
        digest.update(features.tobytes())
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(cache).rglob("model.bin")}
    print(json.dumps({"features": digest.hexdigest(), "files": files, "asked": asked}))


if __name__ == "__main__":
    main()
