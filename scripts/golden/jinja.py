"""Writes tests/golden/jinja.json: what Jinja2, set up as transformers does for chat templates, makes of small templates.

Run from the repository root, with transformers and jinja2 installed:
    python scripts/golden/jinja.py
Each case is a template and its text, or `null` where Jinja2 raises an error.
"""

import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path("tests/golden/jinja.json")

CONTEXT = {
    "text": "Ab c\tß éX\n",
    "padded": "\x1c\u00a0 x y \x85\x1f\n",
    "empty": "",
    "words": ["b", "A", "c"],
    "numbers": [3, 1, 2],
    "nothing": None,
    "yes": True,
    "one": 1,
    "half": 0.5,
    "map": {"b": 1, "a": "x", "n": None},
    "list": [],
    "dict": {},
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        {"role": "tool", "content": None},
    ],
}

# What Jinja2 has and the program refuses.
REFUSED = [
    "{{ text|wordwrap(4) }}", "{{ text|truncate(5) }}", "{{ text|striptags }}", "{{ map|pprint }}", "{{ map|xmlattr }}", "{{ text|urlize }}", "{{ words|random }}", "{{ 1|filesizeformat }}",
    "{{ map|attr('a') }}", "{{ text|urlencode }}", "{{ text.casefold() }}", "{{ text.expandtabs() }}", "{{ text.istitle() }}", "{{ lipsum() }}",
    "{{ '%s' % 'a' }}", "{{ '%02d' % 7 }}", "{% macro m(a) %}{{ varargs }}{% endmacro %}{{ m(1, 2) }}", "{{ map|dictsort(true) }}", "{{ dict.fromkeys(['a']) }}", "{{ cycler('a', 'b').next() }}",
]  # fmt: skip

VALUES = ["text", "empty", "words", "list", "map", "dict", "nothing", "missing", "yes", "one", "half", "(1, 2)"]
TESTS = [
    "sequence", "mapping", "iterable", "string", "number", "integer", "float", "boolean", "none", "defined",
    "undefined", "true", "false", "callable", "lower", "upper", "escaped", "sameas none", "sameas true",
    "eq(1)", "ne(1)", "in([1, none])",
]  # fmt: skip
OF_NUMBERS = ["odd", "even", "divisibleby(3)", "gt(2)", "ge 2", "lt(2)", "le(2)", "number", "integer", "float"]

METHODS = [
    "capitalize()", "center(12)", "center(13, '*')", "count('b')", "count('')", 
    "endswith('\\n')", "endswith(('x', '\\n'))", "find('c')", "find('zz')", "find('b', 2)", "index('c')",
    "index('zz')", "isalnum()", "isalpha()", "isascii()", "isdigit()", "islower()", "isnumeric()", "isspace()",
    "isupper()", "join(['1', '2'])", "ljust(12, '.')", "lower()", "lstrip('A')", "partition(' ')",
    "partition('zz')", "removeprefix('Ab')", "removeprefix('b')", "removesuffix('X\\n')", "replace('b', 'dd')",
    "replace('', '-', 3)", "rfind('c')", "rindex('c')", "rjust(12)", "rpartition(' ')", "rsplit(' ', 1)", "rsplit()",
    "rstrip()", "split()", "split(' ')", "split(none, 1)", "split('b', 1)", "split(' ', maxsplit=1)", "splitlines()",
    "splitlines(true)", "startswith('Ab')", "startswith(('x', 'A'))", "startswith('b', 1)", "strip()", "swapcase()",
    "title()", "upper()", "zfill(12)", 
]  # fmt: skip

FILTERS = [
    "capitalize", "center(9)", "count", "default('d')", "default('d', true)", "d('d', boolean=true)", "escape", "e",
    "first", "forceescape", "indent", "indent(2, true)", "indent(2, first=true, blank=true)", "int", "float", "join",
    "join('-')", "last", "length", "list", "lower", "replace('b', 'c')", "reverse|list", "safe", "sort",
    "string", "title", "tojson", "trim", "trim('A')", "upper", "wordcount",
    "unique|list", "min", "max", "sum", "batch(2)|list", "slice(2)|list", 
    "select|list", "reject|list", "items|list", "dictsort", 
    "map('upper')|list", "string|length",
]  # fmt: skip

OTHERS = [
    # Printing of values.
    "{{ none }} {{ true }} {{ false }} {{ 1.0 }} {{ 0.1 }} {{ 10**30 }} {{ -0.0 }}",
    "{{ [1, 'a', \"it's\", none, true, 1.5, {'k': 'v'}] }} {{ {'a': [1], 2: 'b'} }} {{ ('a', 1) }} {{ ('a',) }} {{ () }}",
    "{{ 'a\\nb\\t\\\\ \\u00e9 \\x41' }} {{ ['a\\nb\\t\\\\ \\u00e9 \\x41', '\"', \"'\", '\"\\''] }}",
    "{{ text ~ none ~ 1 ~ true ~ 1.0 ~ [1] }}",
    # Operators.
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 3 }} {{ 2 ** -1 }} {{ 7.5 // 2 }}",
    "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ [1] * 2 }} {{ 'a' 'b' }} {{ 1_000 }}",
    "{{ 'a' + 1 }}", "{{ 'a' + none }}", "{{ none + 'a' }}", "{{ missing + 'a' }}", "{{ 'a' + missing }}", "{{ [1] + (2,) }}",
    "{{ 1 + true }} {{ true + true }} {{ 1 == true }} {{ 1 == 1.0 }} {{ '1' == 1 }} {{ [1] == [1] }} {{ none == missing }}",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 1 == 1 == 1 }} {{ 1 < 3 == true }} {{ 'a' < 'b' }}",
        "{{ 'b' in 'abc' }} {{ 1 in [1] }} {{ 'a' in map }} {{ 'z' not in map }} {{ '' in '' }}", "{{ 'a' in none }}",
    "{{ 'a' in missing }}", "{{ 1 in (1, 2) }} {{ 3 in range(3) }}",
    "{{ not none }} {{ not '' }} {{ not [] }} {{ not 0 }} {{ not missing }} {{ not {} }} {{ not 'a' }} {{ not 0.0 }}",
    "{{ '' or 'a' }} {{ 'a' and 'b' }} {{ none and 1 }} {{ 0 or none }} {{ '' and missing }}",
    "{{ 'y' if yes else 'n' }} {{ 'y' if nothing }} {{ 'a' if empty else 'b' if yes else 'c' }}",
    "{{ -1 | abs }} {{ (-1) | abs }} {{ 1 + 2 | string | length }} {{ 'a' ~ 'b' | upper }} {{ -2 ** 2 }}",
    "{{ '{}-{}'.format('a', 1) }}", "{{ '{a}-{0:>4}'.format(1, a=2) }}",
    "{{ '%s and %s'|format('a', 1) }}", "{{ '%(a)s'|format(a=1) }}",
    # Slices and items.
    "{{ text[0] }}|{{ text[-1] }}|{{ text[99] }}|{{ words[0] }}|{{ words[-1] }}|{{ words[9] }}|{{ map['a'] }}|{{ map.a }}|{{ map['z'] }}|{{ map.z }}",
    "{{ text[1:] }}|{{ text[:2] }}|{{ text[-3:-1] }}|{{ text[::2] }}|{{ text[::-1] }}|{{ text[3:0:-1] }}|{{ text[0:3:-1] }}|{{ text[9:2] }}",
    "{{ words[1:] }}|{{ words[:-1] }}|{{ words[::-1] }}|{{ words[2:0:-1] }}|{{ words[-1::-1] }}|{{ words[-9:9] }}|{{ words[5::-1] }}|{{ words[:0:-1] }}|{{ words[-2::-1] }}",
    "{{ list[::-1] }}|{{ list[1:] }}|{{ empty[::-1] }}|{{ empty[1:] }}|{{ (1, 2)[::-1] }}|{{ range(4)[::-1]|list }}",
    "{{ words[one:] }}{{ words[:one + 1] }}{{ words[words|length - 1:] }}{{ {'a': words}['a'][1:][::-1] }}{{ words[1:]|join(':') }}",
    "{{ nothing[1:] }}", "{{ missing[1:] }}", "{{ nothing[0] }}", "{{ missing[0] }}", "{{ missing.a }}", "{{ nothing.a }}", "{{ map.z.y }}", "{{ one[0] }}",
    "{{ words.0 }} {{ messages.0.role }} {{ messages[0]['role'] }} {{ messages[-1].role }} {{ messages[1:][0].role }}",
    "{{ map.items()|list }} {{ map.keys()|list }} {{ map.values()|list }} {{ map.get('a') }} {{ map.get('z') }} {{ map.get('z', 'd') }}",
    "{{ words.index('A') }} {{ words.count('A') }}", "{{ words.index('z') }}",
    "{{ words.append('d') }}", "{{ map.pop('a') }}", "{{ map.update({'z': 1}) }}", "{{ text.nosuch }}|{{ words.nosuch }}|{{ one.nosuch }}",
    "{{ map|length }} {{ nothing is none }} {{ map.n is none }} {{ map.n is defined }} {{ map.z is defined }} {{ missing.z is defined }}",
    "{{ dict(a=1) }} {{ dict({'b': 2}, a=1) }} {{ dict([('a', 1)]) }} {{ range(1, 6, 2)|list }} {{ range(3, 0, -1)|list }}",
    # Loops.
    "{% for x in none %}{{ x }}{% endfor %}", "{% for x in nothing %}{{ x }}{% else %}e{% endfor %}", "{% for x in missing %}{{ x }}{% else %}e{% endfor %}",
    "{% for x in 3 %}{{ x }}{% endfor %}", "{% for x in one %}{{ x }}{% endfor %}", "{% for x in true %}{{ x }}{% endfor %}", "{% for x in map.n %}{% endfor %}", "{% for x in map.z %}{% endfor %}ok",
    "{% for c in 'ab' %}{{ c }}.{% endfor %}{% for k in map %}{{ k }}{% endfor %}{% for k, v in map.items() %}{{ k }}{{ v }}{% endfor %}",
    "{% for x in [1, 2, 3] if x != 2 %}{{ loop.index }}{{ x }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% for x in words if x is lower %}{{ x }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.cycle('o', 'e') }}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %}", "{% for (a, b) in [[1, 2]] %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in words %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ x }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "{% for x in (words if yes else none) %}{{ x }}{% endfor %}{% for x in words[1:] %}{{ x }}{% endfor %}{% for x in words|sort %}{{ x }}{% endfor %}",
    "{% for m in messages %}{% if not loop.last and messages[loop.index0 + 1].role == 'user' %}{{ m.role }}{% endif %}{% endfor %}",
    "{%- for x in\n  words\n  if x -%}\n {{ x }}\n{%- endfor -%}", "{% for x in [{'a': 'in if for'}] %}{{ x.a }}{% endfor %}", "{% for x in map['a'] if x in 'x' %}{{ x }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in [1] %}{% set ns.x = 2 %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(seen=[]) %}{% for w in words %}{% set ns.seen = ns.seen + [w] %}{% endfor %}{{ ns.seen }}", "{% if missing.z %}{% endif %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = (1, 2) %}{{ a[0] }}", "{% set x %}a{{ one }}{% endset %}{{ x|upper }}", "{% set x | upper %}a{% endset %}{{ x }}",
    "{% macro m(a, b='d', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(b=2, a=1) }}", "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}",
    "{% macro m(x) %}{% if x %}{{ x }}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}",
    "{% filter upper %}ab{% endfilter %}", "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}", "{% raw %}{{ x }}{% for %}{% endraw %}", "{# {% for x in none %} #}ok{# {{ #}",
    "{{ '{% for x in none %}' }}{{ \"[1:2] {# x #} %}\" }}{{ '}}' }}", "{% if '%}' == '%}' %}a{% endif %}",
    "  {% if true %}\n  a\n  {%- endif %}\n  {%+ if true %}b{% endif +%}\n c\n\n", "a\n", "a\n\n", "{{ 'a\n' }}\n", "{%- if true -%} a {%- endif -%}\n", "a {#- c -#} b", "a\r\nb\r\n",
    "{{ raise_exception('no') }}", "{% include 'x' %}", "{% block a %}b{% endblock %}", "{% do [].append(1) %}", "{% trans %}a{% endtrans %}", "{% nosuch %}", "{{ nosuch() }}", "{{ 1 is nosuch }}", "{{ 'a'|nosuch }}",
    "{% if x is defined and x %}a{% elif nothing is not none %}b{% else %}c{% endif %}", "{{ (not yes) is false }} {{ not yes is false }}", "{{ text is not none and text is string }}",
    "{{ messages|map(attribute='role')|join(',') }}", "{{ messages|map(attribute='z', default='d')|list }}", "{{ messages|selectattr('role', 'equalto', 'user')|list }}", "{{ messages|selectattr('role', 'in', ['user', 'tool'])|map(attribute='role')|list }}",
    "{{ messages|rejectattr('role', 'eq', 'user')|list|length }}", "{{ messages|selectattr('content')|list|length }}", "{{ messages|selectattr('tool_calls', 'defined')|list }}", "{{ (messages|selectattr('role', 'equalto', 'user')|first).content }}", "{{ (messages|selectattr('role', 'equalto', 'none')|first) is defined }}",
    "{{ messages|groupby('role')|length }}", "{{ words|select('in', ['b'])|list }}", "{{ words|select('equalto', 'b')|first }}", "{{ numbers|sort }} {{ numbers|sort(reverse=true) }} {{ words|sort(case_sensitive=true) }} {{ messages|sort(attribute='role')|map(attribute='role')|list }}",
    "{{ words|map('lower')|list }} {{ words|map('replace', 'b', 'x')|list }} {{ [1, 2]|map('string')|join('+') }}", "{{ numbers|sum }} {{ [{'a': 1}]|sum(attribute='a') }} {{ [1.5]|sum(start=1) }}", "{{ messages|join(', ', attribute='role') }}",
    "{{ 'x'|int }} {{ '7'|int }} {{ 'x'|int(5) }} {{ '0x1f'|int(0, 16) }} {{ 3.9|int }} {{ '3.9'|int }} {{ '1.5'|float }} {{ 'x'|float(2.5) }} {{ none|int }}", "{{ 2.5|round }} {{ 2.567|round(2) }} {{ 2.1|round(0, 'ceil') }} {{ 2.9|round(method='floor') }} {{ 3|round }}",
    "{{ 'abc'|list }} {{ map|list }} {{ [1, 2]|last }} {{ []|first }} {{ []|last }} {{ []|first is defined }} {{ ''|first }}", "{{ [[1, 2]]|map('first')|list }} {{ [1, [2]]|map('string')|list }}", "{{ 'a,b'|replace(',', ';', 1) }}", "{{ text|trim|length }}", "{{ map|dictsort }}",
    "{{ map|items|list }}", "{{ map|tojson }} {{ map|tojson(indent=4) }} {{ 0.1|tojson }} {{ 1.0|tojson }} {{ 'é\u2028</x>'|tojson }} {{ missing|default(none)|tojson }} {{ (1, 2)|tojson }} {{ 10**20|tojson }} {{ '\\x7f\\x01'|tojson }}", "{{ missing|tojson }}", "{{ {1: 2, none: 3}|tojson }}",
    "{{ [1, 1, 2]|unique|list }} {{ [1, 2, 3]|batch(2, 0)|list }} {{ ['a', 'A']|unique|list }}", "{% set j = joiner(',') %}{{ j() }}{{ j() }}", "{{ namespace is defined }} {{ raise_exception is defined }} {{ strftime_now is defined }}",
    "{{ 'a b'|title }} {{ \"it's o'clock\"|title }} {{ 'fOO bar-baz'|title }} {{ 'fOO'|capitalize }} {{ \"they're\".title() }}", "{{ 'x'.join(['a', 1]) }}", "{{ ', '.join(words) }}", "{{ ','.join('abc') }}", "{{ ''.join([]) }}", "{{ 'a-b_c'.split('-', 1)[1] }} {{ 'a'.split('') }}", "{{ 'abc'.find('c', 1, 2) }}",
    "{{ 'a\x0bb\x1cc\x85d\u2028e\r\nf'.splitlines() }}", "{{ 'a\x1cb\x1fc d'.split() }}", "{{ padded.strip()|length }} {{ padded|trim|length }} {{ padded.lstrip()|length }} {{ padded.rstrip()|length }} {{ '\x1c\x1f\u00a0\u3000\u200b'.isspace() }} {{ '\x1c'.isspace() }} {{ '\u200b'|trim|length }}", "{{ 'xxaxx'.strip('x') }} {{ 'ab'|trim('b') }}",
    "{{ 'a' is sameas 'a' }} {{ none is sameas none }} {{ 1 is sameas 1.0 }} {{ true is sameas 1 }}", "{{ 'a' is in 'abc' }} {{ 'a' is in(['a']) }} {{ 'a' is not in ['b'] }}", "{{ 4 is divisibleby 2 }} {{ 3 is odd and 2 is even }}", "{{ 'nosuch' is filter }} {{ 'upper' is filter }} {{ 'odd' is test }}",
    "{{ {'a': 1, 'a': 2} }} {{ {'a': 1}['a'] }}", "{{ {'a': {'b': 2}}.a.b }} {{ [1, 2, 3][1] }} {{ 'abc'[1] }} {{ ('a', 'b')[1] }}", "{{ [1, 2] == (1, 2) }} {{ {'a': 1} == {'a': 1} }} {{ 'a' != 'b' }}", "{{ true is integer }} {{ true is number }} {{ 1 is boolean }} {{ true == 1 }}",
    "{{ '\U0001f600'|length }} {{ '\U0001f600a'[0] }} {{ '\U0001f600a'[::-1] }} {{ 'é'|upper }} {{ 'ß'|upper }} {{ 'İ'|lower|length }}", "{{ 'a'|center(5) }}| {{ 'ab'|center(5) }}|", "{{ '1' * 3 }} {{ 3 * '1' }} {{ 'a' * 0 }}", "{{ loop is defined }}", "{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }} {% endfor %}", "{% for m in messages[::-1] if m.role != 'tool' %}{{ loop.index }}{% endfor %}",
    "{% set x = messages[1:] if messages[0].role == 'system' else messages %}{{ x|length }}", "{% set n = (messages|length - 1) - 2 %}{{ messages[n].role }}", "{{ messages[0].content + '\\n' if messages[0].role == 'system' else '' }}", "{{ messages[2].content[0]['text'] }}{{ messages[2].content is string }}{{ messages[2]['content'] is sequence }}", "{{ messages[9].role }}", "{{ messages[9] is defined }}",
    "{% set ns = namespace(a=1, b=none) %}{% if ns.b is none %}{% set ns.b = 'x' ~ ns.a %}{% endif %}{{ ns.b }}{{ ns.c is defined }}", "{{ ns is defined }}{% if false %}{% set ns = 1 %}{% endif %}{{ ns is defined }}", "{{ text.split('c')[-1].strip() }}{{ text.split('zz')|length }}", "{{ (text ~ 'x').strip('\\n') }}", "{{ text|replace('\\n', '')|trim }}", "{{ 'a'.upper() ~ 'B'.lower() }}", "{{- ' a' }}\n{{ 'b ' -}}\n c",
    "{% if 1 %}a{% endif %}\n{% if 1 %}\nb\n{% endif %}\n", "\t {% set x = 1 %}\n{{ x }}\n", "{% if 'a' in ['a', 'b'] and 'c' not in ['a'] %}y{% endif %}", "{{ [words, numbers]|length }} {{ [words, numbers]|sum(start=[]) }}", "{{ namespace(a=1).a }}", "{{ text|first }}{{ text|last|tojson }}", "{{ numbers|max }} {{ numbers|min }} {{ words|max }} {{ ['b', 'A']|min }} {{ []|max }}", "{{ 1 if true }}{{ 1 if false }}|",
]  # fmt: skip


def text(source):
    try:
        return _compile_jinja_template(source).render(**json.loads(json.dumps(CONTEXT)))
    except Exception:
        return None


def main():
    sources = [f"{{{{ {value} is {test} }}}}" for test in TESTS for value in VALUES]
    sources += ["{{ range(3) is sequence }}", "{{ range(3) is iterable }}", "{{ range(3) is mapping }}"]
    sources += [f"{{{{ {number} is {test} }}}}" for test in OF_NUMBERS for number in ["3", "2", "2.5", "0"]]
    sources += [f"{{{{ text.{method} }}}}" for method in METHODS]
    sources += [f"{{{{ {value}|{filter} }}}}" for filter in FILTERS for value in VALUES if (value, filter) != ("text", "sort")]
    sources += OTHERS
    assert all(text(source) is not None for source in REFUSED)
    cases = [{"template": source, "text": text(source)} for source in dict.fromkeys(sources)]
    made_by = f"transformers {transformers.__version__}, Jinja2 {jinja2.__version__}"
    golden = {"made_by": made_by, "context": CONTEXT, "cases": cases, "refused": REFUSED}
    lines = json.dumps(golden, ensure_ascii=False).replace('}, {"template"', '},\n{"template"')
    OUT.write_text(lines + "\n")


if __name__ == "__main__":
    main()
