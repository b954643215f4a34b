"""A language model of 100 kB that calls a tool, written by hand.

It is a llama of one layer whose attention and feed-forward weights are zero, so the last token
alone determines the next one, by :data:`FOLLOWS`. That is enough to open a call of any tool that it
is offered, to fill every string in it with ``Paris`` (llama.cpp's grammar supplies the rest of the
JSON), and to answer ``It is sunny.`` when it reads the result of the tool.

The file format is GGUF 3: a header, typed metadata, tensor descriptions, aligned tensor data
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import struct
from array import array
from pathlib import Path

#: Hermes-style tool calls in ChatML, which llama.cpp recognizes by the shape of the template. A
#: prompt that ends in a tool's answer ends in ">", every other one in a newline.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Functions, within <tools></tools>:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
To call one:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if messages[-1].role == "tool" %}>{% endif %}{% endif %}
"""

#: Token -> next token. Every other token is followed by ``"``, or by the end of the call if the
#: grammar allows no string.
FOLLOWS = {
    "\n": "<tool_call>",
    "<tool_call>": "\n",
    '"': "Paris",
    "</tool_call>": "<|im_end|>",
    ">": "It is sunny.",
    "It is sunny.": "<|im_end|>",
}
OTHERWISE = {'"': 10.0, "</tool_call>": 7.0}

WORDS = ["Paris", "It is sunny.", "<tool_call>", "</tool_call>"]
CONTROL = ["<|im_start|>", "<|im_end|>"]

#: The width of the model: one dimension for each line of FOLLOWS and one for every other token.
WIDTH = 32

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL_TOKEN, USER_DEFINED = 1, 3, 4


def write(path: Path) -> None:
    """Write the model to ``path``."""
    tokens = [*byte_tokens(), *WORDS, *CONTROL]
    kinds = [NORMAL] * 256 + [USER_DEFINED] * len(WORDS) + [CONTROL_TOKEN] * len(CONTROL)
    metadata = [
        entry("general.architecture", STRING, string("llama")),
        entry("llama.context_length", UINT32, struct.pack("<I", 8192)),
        entry("llama.embedding_length", UINT32, struct.pack("<I", WIDTH)),
        entry("llama.block_count", UINT32, struct.pack("<I", 1)),
        entry("llama.feed_forward_length", UINT32, struct.pack("<I", WIDTH)),
        entry("llama.attention.head_count", UINT32, struct.pack("<I", 1)),
        entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        entry("tokenizer.ggml.model", STRING, string("gpt2")),
        entry("tokenizer.ggml.pre", STRING, string("default")),
        entry("tokenizer.ggml.tokens", ARRAY, items(STRING, [string(token) for token in tokens])),
        entry(
            "tokenizer.ggml.token_type",
            ARRAY,
            items(INT32, [struct.pack("<i", kind) for kind in kinds]),
        ),
        entry("tokenizer.ggml.merges", ARRAY, items(STRING, [])),
        entry("tokenizer.ggml.bos_token_id", UINT32, struct.pack("<I", len(tokens) - 2)),
        entry("tokenizer.ggml.eos_token_id", UINT32, struct.pack("<I", len(tokens) - 1)),
        entry("tokenizer.ggml.add_bos_token", BOOL, struct.pack("<?", False)),
        entry("tokenizer.chat_template", STRING, string(TEMPLATE)),
    ]

    descriptions: list[bytes] = []
    data = bytearray()
    for name, rows in tensors(tokens).items():
        shape = [WIDTH, len(rows)] if len(rows) > 1 else [WIDTH]
        descriptions.append(
            string(name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", 0, len(data))  # type 0: 32-bit floats
        )
        for row in rows:
            data += array("f", row).tobytes()  # a row is 128 bytes: always aligned

    head = b"GGUF" + struct.pack("<IQQ", 3, len(descriptions), len(metadata))
    head += b"".join(metadata) + b"".join(descriptions)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def tensors(tokens: list[str]) -> dict[str, list[list[float]]]:
    """The weights by name, each as rows of :data:`WIDTH` numbers."""
    number = {token: place for place, token in enumerate(tokens)}
    number["\n"] = ord("\n")  # the only token here that has another name in the vocabulary
    embedding = [unit(0, 1.0) for _ in tokens]
    output = [unit(0, 0.0) for _ in tokens]
    for token, weight in OTHERWISE.items():
        output[number[token]][0] = weight
    for dimension, (before, after) in enumerate(FOLLOWS.items(), start=1):
        embedding[number[before]] = unit(dimension, 1.0)
        output[number[after]][dimension] = 10.0
    ones = [[1.0] * WIDTH]
    zeros = [[0.0] * WIDTH] * WIDTH
    layer = {
        "attn_norm": ones,
        "attn_q": zeros,
        "attn_k": zeros,
        "attn_v": zeros,
        "attn_output": zeros,
        "ffn_norm": ones,
        "ffn_gate": zeros,
        "ffn_up": zeros,
        "ffn_down": zeros,
    }
    return {
        "token_embd.weight": embedding,
        "output_norm.weight": ones,
        "output.weight": output,
        **{f"blk.0.{name}.weight": rows for name, rows in layer.items()},
    }


def unit(dimension: int, weight: float) -> list[float]:
    """A row that is ``weight`` in one dimension and zero in the others."""
    return [weight if place == dimension else 0.0 for place in range(WIDTH)]


def byte_tokens() -> list[str]:
    """GPT-2's spelling of the 256 bytes: each one a printable character."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def string(text: str) -> bytes:
    """A GGUF string: its length in bytes, then the bytes."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def items(kind: int, values: list[bytes]) -> bytes:
    """The value of a GGUF array of one kind."""
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def entry(key: str, kind: int, value: bytes) -> bytes:
    """One line of GGUF metadata."""
    return string(key) + struct.pack("<I", kind) + value
