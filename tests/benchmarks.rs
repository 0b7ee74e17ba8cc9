//! Benchmarks of programs as a user scores them: right programs pass, and none that cheats does.
//!
//! The problems are made up, in the published layouts.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod support;

use serde_json::{Value, json};
use std::fs;
use support::{Place, done, lines};

/// What passes no test, however it is asked: each claims success in another way.
const ATTACKS: [(&str, &str); 8] = [
    ("leaves at once", "import sys\nsys.exit(0)"),
    ("ends the process", "import os\nos._exit(0)"),
    ("ends it when called", "import os\ndef inc(n):\n    os._exit(0)"),
    ("exits when called", "import sys\ndef inc(n):\n    sys.exit(0)"),
    (
        "gives what equals everything",
        "class Same(int):\n    def __eq__(self, other):\n        return True\n    __hash__ = int.__hash__\n\
         def inc(n):\n    return Same(-7)",
    ),
    (
        "prints marks of values and of success",
        "import os\ndef inc(n):\n    os.write(1, b'\\n\\x1e{\"passed\": true}\\n{\"passed\": true}\\nOK\\n')\n    return None",
    ),
    (
        "patches what compares",
        "import builtins, json, sys\njson.dumps = lambda value: '{\"value\": true}'\n\
         builtins.AssertionError = Exception\nsys.exit = lambda *args: None\ndef inc(n):\n    return True",
    ),
    (
        "looks through its callers' frames",
        "import sys\ndef inc(n):\n    frame = sys._getframe()\n    while frame:\n        for value in list(frame.f_locals.values()):\n            \
         if isinstance(value, dict) and 'expected' in value:\n                return value['expected'][0]\n        frame = frame.f_back\n    return None",
    ),
];

/// The verdicts on programs that answer the one problem of `data`.
fn verdicts(task: &str, data: &str, id: &str, programs: &[&str]) -> Vec<Value> {
    let place = Place::new();
    let name = if data.starts_with('[') { "data.json" } else { "data.jsonl" };
    fs::write(place.path(name), data).unwrap();
    let response = |code: &&str| json!({"id": id, "response": format!("```python\n{code}\n```")});
    let responses: Vec<Value> = programs.iter().map(response).collect();
    fs::write(place.path("responses.jsonl"), lines(&responses)).unwrap();
    let words = format!(
        "eval {task} --data {name} --responses responses.jsonl --save-responses graded.jsonl"
    );
    done(&mut place.train(&words));
    let graded = fs::read_to_string(place.path("graded.jsonl")).unwrap();
    graded.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn humaneval() -> String {
    let row = json!({
        "task_id": "Own/1", "entry_point": "inc", "canonical_solution": "    return n + 1\n",
        "prompt": "def inc(n: int) -> int:\n    \"\"\" Add one.\n    \"\"\"\n",
        "test": "def check(candidate):\n    for n in range(3):\n        assert candidate(n) == n + 1\n",
    });
    row.to_string()
}

fn mbpp() -> String {
    let row = json!({
        "text": "Add one.", "code": "def inc(n):\n  return n + 1", "task_id": 11, "test_setup_code": "",
        "test_list": ["assert inc(1) == 2", "assert {inc(4)} == {5}"],
        "challenge_test_list": [],
    });
    row.to_string()
}

fn livecodebench(testtype: &str) -> String {
    let (first, second) = match testtype {
        "stdin" => (json!([{"input": "1\n", "output": "2\n", "testtype": testtype}]), "5\n"),
        _ => (json!([{"input": "1", "output": "2", "testtype": testtype}]), "5"),
    };
    let private = json!([{"input": second, "output": "6", "testtype": testtype}]);
    let row = json!({
        "question_title": "t", "question_content": "Add one.", "platform": "leetcode", "question_id": "q1",
        "contest_id": "c", "contest_date": "2024-01-01T00:00:00", "starter_code": "", "difficulty": "easy",
        "public_test_cases": first.to_string(), "private_test_cases": private.to_string(),
        "metadata": json!({"func_name": "inc"}).to_string(),
    });
    row.to_string()
}

fn assert_only_the_first_passes(task: &str, data: &str, id: &str, programs: &[&str]) {
    let graded = verdicts(task, data, id, programs);
    assert_eq!(graded.len(), programs.len());
    assert_eq!(graded[0]["passed"], true, "{task}: {}", graded[0]);
    for (graded, program) in graded.iter().zip(programs).skip(1) {
        assert_eq!(graded["verdict"]["verdict"], "fail", "{task}: {program}\n{graded}");
    }
}

#[test]
fn no_program_forges_success_of_functions_with_assertions() {
    let attacks = ATTACKS.map(|(_, program)| program);
    let programs = [&["def inc(n):\n    return n + 1"][..], &attacks].concat();
    assert_only_the_first_passes("humaneval", &humaneval(), "Own/1", &programs);
    assert_only_the_first_passes("mbpp", &mbpp(), "11", &programs);
}

#[test]
fn no_program_forges_success_of_calls_with_json_arguments() {
    let method = |program: &str| {
        format!(
            "{program}\ntry:\n    class Solution:\n        inc = staticmethod(inc)\nexcept NameError:\n    pass"
        )
    };
    let programs: Vec<String> = ["def inc(n):\n    return n + 1"]
        .into_iter()
        .chain(ATTACKS.map(|(_, program)| program))
        .map(method)
        .collect();
    let programs: Vec<&str> = programs.iter().map(String::as_str).collect();
    assert_only_the_first_passes("livecodebench", &livecodebench("functional"), "q1", &programs);
}

#[test]
fn no_program_forges_success_of_standard_output() {
    let programs = [
        "print(int(input()) + 1)",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "print('passed')",
        "print(2)",
        "print('2\\n6')",
    ];
    assert_only_the_first_passes("livecodebench", &livecodebench("stdin"), "q1", &programs);
}

#[test]
fn values_and_arguments_of_any_size_are_exact() {
    let big = "123456789012345678901234567890";
    let row = json!({
        "text": "Grow.", "code": format!("def grow(n):\n    return n * {big}"), "task_id": 12, "test_setup_code": "",
        "test_list": [format!("assert grow(1) == {big}")], "challenge_test_list": [],
    });
    let programs = [
        format!("def grow(n):\n    return n * {big}"),
        format!("def grow(n):\n    return n * ({big} + 1)"),
        format!("def grow(n):\n    return float(n * {big})"),
    ];
    assert_only_the_first_passes(
        "mbpp",
        &row.to_string(),
        "12",
        &programs.each_ref().map(|p| &p[..]),
    );
    let prompt = "def inc(n: int) -> int:\n    \"\"\" Add one.\n    \"\"\"\n";
    let row = json!({
        "task_id": "Own/2", "entry_point": "inc", "canonical_solution": "    return n + 1\n", "prompt": prompt,
        "base_input": [[1]], "plus_input": [["BIG"]], "atol": 0,
    });
    let data = row.to_string().replace("\"BIG\"", big);
    let programs = ["def inc(n):\n    return n + 1", "def inc(n):\n    return int(float(n)) + 1"];
    assert_only_the_first_passes("humaneval", &data, "Own/2", &programs);
}

#[test]
fn right_programs_in_other_forms_pass() {
    let body = verdicts("humaneval", &humaneval(), "Own/1", &["    return 1 + n"]);
    assert_eq!(body[0]["passed"], true, "{}", body[0]);
    let noisy = "import sys\nprint('hello')\ndef inc(n):\n    print(n)\n    return n + 1\nif __name__ == '__main__':\n    sys.exit(3)";
    assert_eq!(verdicts("mbpp", &mbpp(), "11", &[noisy])[0]["passed"], true);
    let slow = verdicts(
        "mbpp --cpu-ms-per-case 200",
        &mbpp(),
        "11",
        &["def inc(n):\n    while True: pass"],
    );
    assert_eq!(slow[0]["failure"], "cpu_time");
}

#[test]
fn a_problem_whose_own_solution_fails_is_refused() {
    let place = Place::new();
    fs::write(place.path("data.jsonl"), humaneval().replace("return n + 1", "return n")).unwrap();
    let response = json!({"id": "Own/1", "response": ""});
    fs::write(place.path("responses.jsonl"), lines(&[response])).unwrap();
    place.mistake(
        "eval humaneval --data data.jsonl --responses responses.jsonl",
        &["problem Own/1: its tests cannot be taken apart: AssertionError"],
    );
}
