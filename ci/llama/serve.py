#!/usr/bin/env python3
"""llama.cpp's own HTTP server on one model: `serve.py --model X.gguf --port N`.

Port 0 picks a free one. When the server answers it prints one line, `{"port": n}`. It ends when stdin closes, or on SIGTERM.
"""

import argparse
import json
import os
import signal
from urllib.parse import urlsplit

import xllamacpp


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True, help="a GGUF file")
    options.add_argument("--port", type=int, default=0, help="0 picks a free one")
    options.add_argument("--alias", default="tiny", help="the model's name in /v1/models")
    arguments = options.parse_args()

    # Nothing but our line may reach stdout: what llama.cpp prints goes to stderr.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    parameters = xllamacpp.CommonParams()
    parameters.model.path = arguments.model
    parameters.model_alias = [arguments.alias]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = arguments.port
    parameters.n_ctx = 65536  # for all slots together
    parameters.n_parallel = 4  # slots: chats at once
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    print(json.dumps({"port": urlsplit(server.listening_address).port}), file=stdout, flush=True)
    while os.read(0, 4096):
        pass
    os._exit(0)  # the server's own end waits for open streams; whoever closed our stdin does not


if __name__ == "__main__":
    main()
