"""Writes tests/golden/chat/expected.json: what transformers makes of conversations under chat templates.

Run from the repository root, with transformers and jinja2 installed:
    python scripts/golden/chat.py
The tokenizer beside it was made by
    train data tokenizer --from tests/golden/chat/conversations.jsonl \
        --vocab-size 320 --max-token-length 12 --out tests/golden/chat/tokenizer
"""

import json
import shutil
import tempfile
from pathlib import Path

import transformers

HERE = Path("tests/golden/chat")

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{% for message in messages %}
    {% set header = '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' %}
    {% if message.role == 'assistant' %}
{{ header }}{% generation %}{{ message.content | trim }}<|eot_id|>{% endgeneration %}
    {% else %}
{{ header }}{{ message.content | trim }}<|eot_id|>
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Whitespace markers on the tags themselves, scope of a span, loop controls, string methods, and the
# filters and tests in which minijinja differs from Jinja.
SHIMS = (
    "{%- set tally = namespace(turns=0) -%}\r\n"
    "{%- for message in messages -%}\r\n"
    "  {%- if message.content.strip() == '' -%}{%- continue -%}{%- endif -%}\r\n"
    "  {% set tally.turns = tally.turns + 1 %}\r\n"
    "  {{ message.role.upper() }} {{ {'text': message.content, 'turn': tally.turns, 'none': none} | tojson }}\r\n"
    "  {% if message.role == 'assistant' %}\r\n"
    "    {%- generation -%}\r\n"
    "    {% set inner = message.content.split('\\n')[0] %}\r\n"
    "    {{ inner }}|{{ inner is iterable }}|{{ none is iterable }}|{{ message.content[::-1] }}\r\n"
    "    {%+ endgeneration +%}\r\n"
    "  {% endif %}\r\n"
    "  {{ inner is defined }} {{ [message.role, 1, true, none] }} {{ loop.last }}\r\n"
    "{% endfor %}\r\n"
    "{% if tools is not none and tools is defined %}tools{% endif %}\r\n"
    "{{ {'b': [1, {'x': []}], 'a': 'é<'} | tojson(indent=2) }}{{ missing }}\r\n"
)

STRICT = """\
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate') -}}
{%- endif -%}
{{- message.role ~ ': ' -}}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- else -%}
{{- message.content -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}assistant: {% endif -%}
"""

PLAIN_CHATML = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def main():
    config = json.loads((HERE / "tokenizer/tokenizer_config.json").read_text())
    lines = (HERE / "conversations.jsonl").read_text().splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    templates = {
        "own": (config["chat_template"], {}),
        "chatml": (CHATML, {}),
        # Its spans are those of chatml: without tags there is nothing transformers could mask by.
        "plain_chatml": (PLAIN_CHATML, {}),
        "llama3": (LLAMA3, {"bos_token": "<|endoftext|>"}),
        "shims": (SHIMS, {}),
        "strict": (STRICT, {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}),
    }
    cases = []
    for name, (template, extra) in templates.items():
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(HERE / "tokenizer", directory, dirs_exist_ok=True)
            (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config | extra))
            # As bytes: Python would turn the line ends of one template.
            (Path(directory) / "chat_template.jinja").write_bytes(template.encode())
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
            outcomes = [outcome(tokenizer, messages) for messages in conversations]
        cases.append({"name": name, "template": template, "config": extra, "outcomes": outcomes})
    texts = [message["content"] for messages in conversations for message in messages]
    texts += ["", "\r\n \n\n\n x  9", "def f(n):\n    return [n, 10**n]\n"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "tokenizer")
    encodings = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts]
    for row in encodings:
        assert tokenizer.decode(row["ids"]) == row["text"], row
    made_by = f"transformers {transformers.__version__}"
    golden = {"made_by": made_by, "cases": cases, "encodings": encodings}
    (HERE / "expected.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


def outcome(tokenizer, messages):
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        return {"error": str(error)}
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {
        "text": text,
        "prompt": prompt,
        "ids": encoded["input_ids"],
        "mask": encoded["assistant_masks"],
    }


if __name__ == "__main__":
    main()
