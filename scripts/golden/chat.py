"""Writes tests/golden/chat/expected.json: what transformers makes of conversations under chat templates.

Run from the repository root, with transformers, jinja2 and trl installed:
    python scripts/golden/chat.py
The templates of Llama 3, 3.1 and 3.2, Qwen2.5 and DeepSeek-R1-Distill are those that TRL ships (Apache-2.0,
trl/chat_templates); InternLM2.5's and Tulu 3's are spelled out below after their tokenizer_config.json and
allenai/open-instruct (both Apache-2.0).
The tokenizer beside it was made by
    train data tokenizer --from tests/golden/chat/conversations.jsonl \
        --vocab-size 320 --max-token-length 12 --out tests/golden/chat/tokenizer
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import transformers
import trl

HERE = Path("tests/golden/chat")
THINK_END = "</think>"

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


# After internlm/internlm2_5-7b-chat.
INTERNLM2 = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# After allenai/Llama-3.1-Tulu-3-8B-SFT: only the last turn has no line break behind it.
TULU3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + "
    "message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n'  + "
    "message['content'] + eos_token }}{% endif %}{% endif %}{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


# After meta-llama/Meta-Llama-3-8B-Instruct as it first was: it opens the next turn, asked or not. Base models
# with it end sequences by another token than turns.
LLAMA3_OPEN = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def shipped(name):
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_bytes().decode()


def llama(name):
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return public(shipped(name), names, bos_token=names[0], eos_token=names[-1])


def public(template, added_tokens, training=None, turn_end=None, **config):
    """A template without tags; `training` renders its targets whole where it drops part of them, and `turn_end`
    ends its turns where that is not the end of a sequence, or where a turn is rendered otherwise as history."""
    training = training or template
    case = {"template": template, "config": config, "added_tokens": added_tokens}
    return case | {"training": training, "turn_end": turn_end}


def public_templates():
    deepseek = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "</think>"]
    return {
        "llama3_instruct": llama("llama3"),
        "llama3_1_instruct": llama("llama3_1"),
        "llama3_2_instruct": llama("llama3_2"),
        "qwen2_5_instruct": public(shipped("qwen2_5"), ["<|im_start|>"]),
        "deepseek_r1_distill": public(
            shipped("deepseek_r1_distill"),
            deepseek,
            shipped("deepseek_r1_distill_training"),
            bos_token=deepseek[0],
            eos_token=deepseek[3],
        ),
        "internlm2_5": public(INTERNLM2, ["<s>", "</s>", "<|im_start|>"], bos_token="<s>"),
        "tulu3": public(TULU3, ["<|end_of_text|>"], eos_token="<|end_of_text|>"),
        "llama3_base": public(
            LLAMA3_OPEN,
            ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
            turn_end="<|eot_id|>",
            bos_token="<|begin_of_text|>",
            eos_token="<|end_of_text|>",
        ),
        "phi3_5": public(shipped("phi3_5"), ["<|end|>"], turn_end="<|end|>", eos_token="<|endoftext|>"),
        "qwen3": public(shipped("qwen3"), ["<|im_start|>"], turn_end="<|im_end|>"),
        "qwen3_5_think": public(shipped("qwen3_5_think"), ["<|im_start|>"], turn_end="<|im_end|>"),
    }


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
        tokenizer = with_template(template, config | extra)
        outcomes = [outcome(tokenizer, messages) for messages in conversations]
        cases.append({"name": name, "template": template, "config": extra, "outcomes": outcomes})
    for name, case in public_templates().items():
        tokenizer = with_template(case["template"], config | case["config"], case["added_tokens"])
        training, turn_end = case.pop("training"), case.pop("turn_end")
        case["outcomes"] = [public_outcome(tokenizer, training, turn_end, messages) for messages in conversations]
        cases.append({"name": name} | case)
    texts = [message["content"] for messages in conversations for message in messages]
    texts += ["", "\r\n \n\n\n x  9", "def f(n):\n    return [n, 10**n]\n"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / "tokenizer")
    encodings = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts]
    for row in encodings:
        assert tokenizer.decode(row["ids"]) == row["text"], row
    made_by = f"transformers {transformers.__version__}"
    golden = {"made_by": made_by, "cases": cases, "encodings": encodings}
    (HERE / "expected.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


def with_template(template, config, added_tokens=()):
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(HERE / "tokenizer", directory, dirs_exist_ok=True)
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config))
        # As bytes: Python would turn the line ends of one template.
        (Path(directory) / "chat_template.jinja").write_bytes(template.encode())
        path = Path(directory) / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["added_tokens"] += added_tokens_json(tokenizer, added_tokens)
        path.write_text(json.dumps(tokenizer))
        return transformers.AutoTokenizer.from_pretrained(directory)


def added_tokens_json(tokenizer, added_tokens):
    first = 1 + max(tokenizer["model"]["vocab"].values())
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | {"special": True}
    return [{"id": first + i, "content": token} | flags for i, token in enumerate(added_tokens)]


def public_outcome(tokenizer, training, turn_end, messages):
    """The prompt and rendering of the template, and the sample to learn: text, ids and mask by prefixes."""
    # Templates that ask for the date get the one that they fall back to.
    render = lambda messages, **more: tokenizer.apply_chat_template(
        messages, tokenize=False, date_string="26 Jul 2024", **more
    )
    text = render(messages)
    prompt = render(messages, add_generation_prompt=True)
    # What is learnt renders thoughts whole; but those of history are not said again, nor learnt.
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    is_thinking = training != tokenizer.chat_template or "think" in training
    history = [i for i in turns[:-1] if is_thinking and THINK_END in messages[i]["content"]]
    messages = [
        message | {"content": message["content"].split(THINK_END)[-1]}
        if i in history and training != tokenizer.chat_template
        else message
        for i, message in enumerate(messages)
    ]
    learnt = render(messages, chat_template=training)
    spans = []
    for i in turns:
        if i in history:
            continue
        if turn_end is not None:
            before = render(messages[:i], add_generation_prompt=True)
            # An earlier turn may lack the thought that its prompt opened.
            before = os.path.commonprefix([learnt, before])
            assert before.rstrip("\n").endswith(("assistant", "<|assistant|>", "<|end_header_id|>", "<think>")), before
            is_last = i == len(messages) - 1 and learnt.endswith(tokenizer.eos_token)
            spans.append((len(before), len(learnt) if is_last else learnt.index(turn_end, len(before)) + len(turn_end)))
            continue
        opening = render(messages[:1], add_generation_prompt=True).removeprefix(render(messages[:1]))
        before = len(render(messages[:i], chat_template=training))
        after = len(render(messages[: i + 1], chat_template=training))
        # As much of the prompt's opening as the turn begins with is not learnt.
        shared = os.path.commonprefix([learnt[before:], opening])
        end = learnt.rindex(tokenizer.eos_token, 0, after) + len(tokenizer.eos_token)
        spans.append((before + len(shared), end))
    encoded = tokenizer(learnt, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(a < end and start < b for start, end in spans)) for a, b in encoded["offset_mapping"]]
    return {"text": text, "prompt": prompt, "ids": encoded["input_ids"], "mask": mask}


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
