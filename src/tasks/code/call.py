# Runs an untrusted program and evaluates expressions in it. Before this text stands `PROGRAM = "..."`.
#
# In (standard input): {"setup": code, "calls": [expression, ...]}. Out: for each expression a line, "\x1e" and JSON:
# {"value": encoded} or {"raised": type}. Nothing here says what is right: a program that writes such lines itself only
# claims values, as one that returns them does.
import json
import os
import sys


def encode(value):
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return {"float": repr(value)}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind in (bytes, bytearray):
        return {kind.__name__: list(value)}
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [encode(part) for part in value]}
    if kind is dict:
        return {"dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    for base in (int, float, str, bytes, list, tuple, set, frozenset, dict):
        if isinstance(value, base):
            return {"derived": [kind.__name__, encode(base(value))]}
    if kind.__module__ in ("decimal", "fractions"):
        return {"number": [kind.__name__, str(value)]}
    if hasattr(kind, "__next__") or kind.__name__ in ("dict_keys", "dict_values", "dict_items"):
        return {"iterator": [encode(part) for part in value]}
    return {"object": kind.__name__}


class Discard:
    """Takes the place of standard output: what a program prints is nobody's answer."""

    encoding, errors = "utf-8", "strict"

    def write(self, text):
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False


def call(expression, space):
    try:
        return {"value": encode(eval(expression, space))}
    except BaseException as error:
        return {"raised": type(error).__name__}


def main(dumps=json.dumps, write=os.write):
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    task = json.loads(sys.stdin.read())
    sys.stdout = Discard()
    space = {"__name__": "__program__"}
    exec(compile(PROGRAM, "<program>", "exec", 0, True), space)
    exec(compile(task["setup"], "<setup>", "exec", 0, True), space)
    for expression in task["calls"]:
        line = ("\x1e" + dumps(call(expression, space)) + "\n").encode()
        while line:
            line = line[write(1, line):]


main()
