"""llama.cpp's own HTTP server, from the package ``xllamacpp``, until SIGTERM.

Usage: ``llamaserver.py MODEL.gguf PORT ALIAS [SLOTS] [embeddings | reranking]``; with
``embeddings`` or ``reranking`` it serves nothing else. It is a separate program because the server
is C++ code that runs in threads of its process.
"""

import signal
import sys

import xllamacpp

#: The number of concurrent requests if none is given, and the tokens of context for each.
SLOTS = 2
CONTEXT = 2048


def main(model: str, port: str, alias: str, *options: str) -> None:
    """Serve ``model`` on the loopback address until SIGTERM."""
    slots = next((int(option) for option in options if option.isdigit()), SLOTS)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.model_alias = {alias}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.n_parallel = slots
    parameters.n_ctx = slots * CONTEXT
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    parameters.warmup = False
    if "embeddings" in options:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if "reranking" in options:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = xllamacpp.Server(parameters)
    print("serving", server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM})
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
