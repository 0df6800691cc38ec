#!/usr/bin/env python3
"""Writes a tiny model in the GGUF format that llama.cpp loads like any other: `make_model.py OUT.gguf`.

The weights are random (fixed seed, so the file is the same on every run), but embeddings and output matrix are chosen so that each
token makes the next one certain. The model answers every prompt with STORY and stops; when the last message of a chat holds the word
"forever", it says "and on and on ..." until `max_tokens` or the end of its context.
"""

import sys

import gguf
import numpy as np

SEED = 20240229
EMBEDDING, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, CONTEXT = 64, 4, 2, 128, 2, 32768
# No word twice: a token has one successor. The sign for "sun" is said in three byte tokens, which the server has to put together.
WORDS = "Once upon a time some small model was made of random numbers . It told every caller the same tale :".split()
SUN, END_WORDS = "日", "means sun , and that is all !".split()
STORY = " " + " ".join(WORDS) + " " + SUN + " " + " ".join(END_WORDS)
LOOP = ["again", "once", "more"]
EOS, FIRST_BYTE = 2, 3
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if 'forever' in messages[-1].content %}<|forever|>{% else %}<|answer|>{% endif %}"
)


def vocabulary() -> tuple[list[str], list[int], dict[int, int], int]:
    """The tokens (SentencePiece style), their types, each told token's successor, and the first token of STORY."""
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    tokens += [(f"<|{name}|>", kind.CONTROL) for name in ("system", "user", "assistant", "tool", "answer", "forever")]
    tokens += [("▁", kind.NORMAL)] + [(chr(code), kind.NORMAL) for code in range(0x21, 0x7F)]
    base = len(tokens)
    tokens += [("▁" + word, kind.NORMAL) for word in WORDS + END_WORDS + LOOP]
    middle, loop = base + len(WORDS), base + len(WORDS) + len(END_WORDS)
    sun = [FIRST_BYTE + byte for byte in b" " + SUN.encode()]
    story = [*range(base, middle), *sun, *range(middle, loop), EOS]
    circle = [*range(loop, len(tokens)), loop]
    successor = {**dict(zip(story, story[1:])), **dict(zip(circle, circle[1:]))}
    texts, kinds = zip(*tokens)
    assert len(set(texts)) == len(texts), "a token twice"
    successor[texts.index("<|forever|>")] = loop
    return list(texts), [int(k) for k in kinds], successor, base


def main(out: str) -> None:
    texts, kinds, successor, start = vocabulary()
    random = np.random.default_rng(SEED)

    def weights(rows: int, columns: int, scale: float = 0.02) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    # A token's embedding is nearly orthogonal to every other's, except that all which tell nothing share one; the output row of a
    # token is the embedding of its predecessor. What the layers add is small beside that.
    embedding = weights(len(texts), EMBEDDING, 1.0)
    shared = embedding[0].copy()
    for token in range(len(texts)):
        if token not in successor:
            embedding[token] = shared + 0.1 * embedding[token]
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    output = np.zeros_like(embedding)
    output[start] = 8 * shared / np.linalg.norm(shared)
    for before, after in successor.items():
        output[after] += 8 * embedding[before]

    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name("lapce-ai-tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(index) for index in range(len(texts))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    ones, kv = np.ones(EMBEDDING, np.float32), KV_HEADS * EMBEDDING // HEADS
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", EMBEDDING, EMBEDDING), ("attn_k", kv, EMBEDDING), ("attn_v", kv, EMBEDDING), ("attn_output", EMBEDDING, EMBEDDING),
            ("ffn_gate", FEED_FORWARD, EMBEDDING), ("ffn_up", FEED_FORWARD, EMBEDDING), ("ffn_down", EMBEDDING, FEED_FORWARD),
        ):  # fmt: skip
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights(rows, columns))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    main(sys.argv[1])
