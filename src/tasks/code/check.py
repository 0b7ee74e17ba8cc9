# The trusted side of tests: finds out which calls they make, and whether values pass them. No untrusted code runs here.
#
# In (standard input): {"do": one of the functions below, ...}. Out: JSON.
#   split:  {"program", "setup", "tests", "with_names"} -> {"calls": [...]}: the calls that assertions make.
#   record: {"program", "test", "entry"} -> {"calls": [...]}: the calls that a test function makes of the reference.
#   inputs: {"entry", "inputs"} -> {"calls": [...]}; an input is the JSON text of a list of arguments.
#   check_split, check_record, check_inputs, check_equal: the same with "values" -> {"passed": bool, "error": text};
#     a value is the JSON text that call.py wrote, since integers have any size.
import ast
import json
import random
import sys

PLAIN = (bool, int, str, bytes, type(None))


def source(value):
    """A plain value as an expression."""
    kind = type(value)
    if kind in PLAIN:
        return repr(value)
    if kind is float:
        return repr(value) if value == value and value not in (INF, -INF) else "float(%r)" % repr(value)
    if kind in (list, tuple, set, frozenset):
        return "%s([%s])" % (kind.__name__, ", ".join(map(source, value)))
    if kind is dict:
        return "{%s}" % ", ".join(source(k) + ": " + source(v) for k, v in value.items())
    raise TypeError("an argument is a %s, which cannot be passed on" % kind.__name__)


INF = float("inf")


class Opaque:
    """Stands for a value that only the program has. It equals nothing else."""


class Raised(Exception):
    """The program raised an exception where its value is needed."""


def derived(name, value):
    base = type(value)
    return base(value) if base is bool else type(name, (base,), {})(value)


def decode(code):
    if not isinstance(code, dict):
        return code if type(code) in PLAIN else Opaque()
    ((kind, body),) = code.items()
    if kind == "float":
        return float(body)
    if kind == "complex":
        return complex(float(body[0]), float(body[1]))
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind](body)
    if kind in ("list", "tuple", "set", "frozenset"):
        make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return make(decode(part) for part in body)
    if kind == "dict":
        return {decode(key): decode(part) for key, part in body}
    if kind == "range":
        return range(*body)
    if kind == "derived":
        return derived(body[0], decode(body[1]))
    if kind == "number":
        import decimal
        import fractions

        return {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}[body[0]](body[1])
    if kind == "iterator":
        return iter([decode(part) for part in body])
    return Opaque()


class Values:
    """The values of calls, in order."""

    def __init__(self, values):
        self.values, self.next = [json.loads(value) for value in values], 0

    def take(self, index):
        if index >= len(self.values):
            raise Raised("the program ended before it gave a value")
        answer = self.values[index]
        if "raised" in answer:
            raise Raised(str(answer["raised"]))
        return decode(answer["value"])

    def replay(self, *args, **kwargs):
        self.next += 1
        return self.take(self.next - 1)


def run(code, space):
    exec(compile(code, "<test>", "exec", 0, True), space)


class Calls(ast.NodeTransformer):
    """Takes the calls of a program's names out of its tests."""

    def __init__(self, names, same_type):
        self.names, self.same_type, self.calls = names, same_type, []

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id in self.names:
            self.calls.append(ast.unparse(node))
            index = ast.Constant(len(self.calls) - 1)
            return ast.Call(ast.Name("__value__", ast.Load()), [index], [])
        return self.generic_visit(node)

    def visit_Compare(self, node):
        node = self.generic_visit(node)
        if self.same_type and len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            return ast.Call(ast.Name("__same__", ast.Load()), [node.left, node.comparators[0]], [])
        return node


def taken_out(task):
    """The tests without the program's calls, and the calls."""
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = ast.parse(task["program"]).body
    names = {node.name for node in body if isinstance(node, defined)}
    tree = ast.parse("\n".join(task["tests"]))
    calls = Calls(names, task.get("same_type", False))
    tree = ast.fix_missing_locations(calls.visit(tree))
    needed = []
    if task["with_names"]:
        import builtins

        loads = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        needed = sorted({n for n in loads if not n.startswith("__") and not hasattr(builtins, n)})
    return tree, calls.calls, needed


def same(a, b):
    """Equality that also compares types, within containers too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def split(task):
    _, calls, needed = taken_out(task)
    if not task["with_names"]:
        space = {"__name__": "__tests__"}
        run(task["program"], space)
        run(task["setup"], space)
        for call in calls:
            try:
                eval(call, space)
            except NameError:
                # A call within a loop needs a variable that only its test has.
                raise
            except Exception:
                pass
    return {"calls": calls + needed}


def check_split(task):
    tree, calls, needed = taken_out(task)
    values = Values(task["values"])
    for place in range(len(calls), len(calls) + len(needed)):
        values.take(place)
    space = {"__name__": "__tests__"}
    run(task["program"], space)
    run(task["setup"], space)
    space["__value__"], space["__same__"] = values.take, same
    run(tree, space)


def record(task):
    space, calls = {"__name__": "__tests__"}, []
    run(task["program"] + "\n" + task["test"], space)
    reference = space[task["entry"]]

    def recorder(*args, **kwargs):
        given = [source(a) for a in args] + ["%s=%s" % (k, source(v)) for k, v in kwargs.items()]
        calls.append("%s(%s)" % (task["entry"], ", ".join(given)))
        return reference(*args, **kwargs)

    random.seed(0)
    space["check"](recorder)
    assert calls, "the test calls nothing"
    return {"calls": calls}


def check_record(task):
    space = {"__name__": "__tests__"}
    run(task["program"] + "\n" + task["test"], space)
    values = Values(task["values"])
    random.seed(0)
    space["check"](values.replay)


def inputs(task):
    return {"calls": ["%s(%s)" % (task["entry"], ", ".join(map(source, json.loads(a)))) for a in task["inputs"]]}


def close(a, b, atol):
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(close(x, y, atol) for x, y in zip(a, b))
    if isinstance(b, float):
        return isinstance(a, (int, float)) and (a == b or abs(a - b) <= max(atol, 1e-6) + 1e-7 * abs(b))
    return a == b


def check_inputs(task):
    space = {"__name__": "__tests__"}
    run(task["program"], space)
    values, reference = Values(task["values"]), space[task["entry"]]
    for place, args in enumerate(map(json.loads, task["inputs"])):
        got = values.take(place)
        if task["entry"] == "find_zero":
            # Any root is right.
            assert abs(space["poly"](args[0], got)) <= max(task["atol"], 1e-6)
            continue
        expected = reference(*args)
        assert got == expected or close(got, expected, task["atol"]), place


def lists(value):
    if isinstance(value, (list, tuple)):
        return [lists(part) for part in value]
    return value


def check_equal(task):
    values = Values(task["values"])
    for place, expected in enumerate(task["expected"]):
        assert lists(values.take(place)) == json.loads(expected), place


def main():
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    task, stdout = json.loads(sys.stdin.read()), sys.stdout
    sys.stdout = sys.stderr
    result = {"passed": True}
    try:
        result = globals()[task["do"]](task) or result
    except BaseException as error:
        kind = "" if isinstance(error, Raised) else type(error).__name__ + ": "
        result = {"passed": False, "raised": isinstance(error, Raised), "error": (kind + str(error))[:300]}
    stdout.write(json.dumps(result))


main()
