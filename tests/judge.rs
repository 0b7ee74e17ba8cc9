//! What the judge promises about ordinary programs: semantics, limits, verdicts, both modes.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

mod judge_support;

use codeseq::sandbox::{
    Case, Ending, Judge, Limits, Mode, Options, Profile, Program, Reason, Verdict, VerdictKind,
    Watch, verdicts,
};
use std::cell::Cell;
use std::sync::OnceLock;

fn limits() -> Limits {
    Limits {
        cpu_ms_per_case: 500,
        cpu_ms_per_program: 1_500,
        wall_secs_per_case: 1,
        ..Limits::default()
    }
}

fn start(change: impl FnOnce(&mut Options)) -> Judge {
    let mut options = Options { workers: 2, limits: limits(), ..Options::default() };
    change(&mut options);
    Judge::start(options).unwrap()
}

/// A judge that most tests share.
fn judge() -> &'static Judge {
    static JUDGE: OnceLock<Judge> = OnceLock::new();
    JUDGE.get_or_init(|| start(|_| {}))
}

fn cases(pairs: &[(&str, &str)]) -> Vec<Case> {
    pairs.iter().map(|(i, o)| Case { input: (*i).into(), output: (*o).into() }).collect()
}

fn verdict_by(judge: &Judge, code: &str, pairs: &[(&str, &str)]) -> Verdict {
    verdicts(judge, &[(Some(code.to_owned()), &cases(pairs))]).remove(0)
}

fn verdict(code: &str, pairs: &[(&str, &str)]) -> Verdict {
    verdict_by(judge(), code, pairs)
}

fn passes(code: &str, pairs: &[(&str, &str)]) {
    let verdict = verdict(code, pairs);
    assert_eq!(verdict.kind, VerdictKind::Pass, "{code}\n{verdict:?}");
}

fn fails(code: &str, reason: Reason) -> Verdict {
    let verdict = verdict(code, &[("7", "8")]);
    assert_eq!(verdict.kind, VerdictKind::Fail(reason), "{code}\n{verdict:?}");
    verdict
}

#[test]
fn every_usual_way_to_read_and_print_works() {
    let pairs = [("7", "8"), ("9", "10")];
    for code in [
        "print(int(input()) + 1)",
        "import sys\nprint(int(sys.stdin.readline()) + 1)",
        "import sys\nprint(int(sys.stdin.read()) + 1)",
        "import sys\nsys.stdout.write(str(int(sys.stdin.buffer.read()) + 1))",
        "import sys\nfor line in sys.stdin:\n    print(int(line) + 1)",
        "print(int(open(0).read()) + 1)",
        "import os\nos.write(1, str(int(os.read(0, 100)) + 1).encode())",
    ] {
        passes(code, &pairs);
    }
    passes(
        "a, b = map(int, input().split())\nprint(a + b)\nprint(input())",
        &[("1 2\nx\n", "3\nx")],
    );
}

#[test]
fn open_eval_and_exec_exist_but_not_in_the_papers_profile() {
    let code = "exec('x = eval(\"1 + 7\")')\nprint(open(0) and x)";
    passes(code, &[("7", "8")]);
    let paper = start(|options| options.profile = Profile::Paper);
    for name in ["open", "eval", "exec"] {
        let verdict = verdict_by(&paper, &format!("print({name})"), &[("7", "8")]);
        assert_eq!(verdict.kind, VerdictKind::Fail(Reason::RuntimeError));
        assert!(verdict.failure.unwrap().error.unwrap().contains("NameError"));
    }
    let ordinary = "from dataclasses import dataclass\n@dataclass\nclass P:\n    n: int\nprint(P(int(input())).n + 1)";
    assert_eq!(verdict_by(&paper, ordinary, &[("7", "8")]).kind, VerdictKind::Pass);
}

#[test]
fn the_documented_modules_can_be_imported_and_others_are_refused_by_name() {
    let documented = "math itertools functools collections heapq bisect fractions decimal re random string operator statistics sys io json typing dataclasses enum datetime time threading";
    for module in documented.split(' ') {
        passes(&format!("import {module}\nprint(8)"), &[("7", "8")]);
        assert!(judge().layers().modules.iter().any(|m| m == module), "{module}");
    }
    let verdict = fails("x = 1\nimport numpy", Reason::Forbidden);
    let failure = verdict.failure.unwrap();
    assert_eq!(failure.line, Some(2));
    assert!(failure.error.unwrap().contains("import of 'numpy' is refused"));
    passes("try:\n    import numpy\nexcept ImportError:\n    print(8)", &[("7", "8")]);
}

#[test]
fn what_modules_load_late_is_there() {
    passes(
        "from datetime import datetime\nprint(datetime.strptime('2024-02-01', '%Y-%m-%d').day + 7)",
        &[("7", "8")],
    );
    passes("print(len(str(10 ** 20_000)) - 19_993)", &[("7", "8")]);
    passes("print('é'.encode('latin-1')[0] - 225)", &[("7", "8")]);
    passes(
        "from decimal import Decimal\nprint(Decimal('7.5') + Decimal('0.5') == 8 and 8)",
        &[("7", "8")],
    );
    passes("import random, statistics\nprint(round(statistics.mean([7, 9])))", &[("7", "8")]);
}

#[test]
fn integers_of_any_size_are_printed_and_compared() {
    let expected = (num_bigint::BigInt::from(7)).pow(12_000).to_string();
    passes("print(7 ** 12000)", &[("1", &expected)]);
    passes("print('+' + '0' * 5000 + str(7 ** 12000))", &[("1", &expected)]);
    let verdict = verdict("print(7 ** 12000 + 1)", &[("1", &expected)]);
    assert_eq!(verdict.kind, VerdictKind::Fail(Reason::WrongAnswer));
    assert!(verdict.failure.unwrap().expected.chars().count() < 300, "texts are shortened");
    passes("print(int(input()) % 1000)", &[(&"9".repeat(50_000), "999")]);
}

#[test]
fn long_inputs_and_long_programs_arrive_whole() {
    let input = "1\n".repeat(300_000);
    passes("import sys\nprint(sum(map(int, sys.stdin)))", &[(&input, "300000")]);
    let code = format!("{}\nprint(8)", "# a long comment line\n".repeat(50_000));
    passes(&code, &[("7", "8")]);
}

#[test]
fn each_limit_has_its_reason() {
    fails("while True:\n    pass", Reason::CpuTime);
    fails("sum(range(10 ** 13))", Reason::CpuTime);
    fails("import time\ntime.sleep(100)", Reason::WallTime);
    fails("x = [0] * 10 ** 9", Reason::Memory);
    fails("print('x' * 10 ** 6)", Reason::OutputLimit);
    fails("def f(n):\n    return f(n + 1)\nf(0)", Reason::RuntimeError);
    fails("import os\nos.fork()", Reason::Forbidden);
    fails("import os\nos.kill(1, 9)", Reason::Forbidden);
    fails("import os\nos.abort()", Reason::Killed);
    fails("print(", Reason::SyntaxError);
    fails("print(1)\x00", Reason::SyntaxError);
    fails("", Reason::WrongAnswer);
}

#[test]
fn each_limit_names_itself_with_its_number() {
    let error = |code: &str, change: fn(&mut Limits)| {
        let judge = start(|options| change(&mut options.limits));
        let pairs = ["1", "2", "3", "4"].map(|n| (n, "8"));
        verdict_by(&judge, code, &pairs).failure.unwrap().error.unwrap()
    };
    let spin = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end:\n    pass\nprint(8)";
    let endless = "while True:\n    pass";
    assert_eq!(error(endless, |l| l.cpu_ms_per_case = 150), "more than 150 ms of CPU time");
    let program = "more than 500 ms of CPU time in all cases together";
    assert_eq!(error(spin, |l| l.cpu_ms_per_program = 500), program);
    let program = "more than 300 ms of CPU time in all cases together";
    assert_eq!(error(endless, |l| l.cpu_ms_per_program = 300), program);
    assert_eq!(error("import time\ntime.sleep(100)", |_| {}), "slept for 1 s");
    assert!(error("x = [0] * 10 ** 9", |l| l.memory_mb = 256).contains("256 MB of memory"));
    let flood = error("print('x' * 10 ** 6)", |l| l.output_bytes = 1_000);
    assert_eq!(flood, "more than 1000 bytes of output");
}

#[test]
fn what_contest_programs_ask_the_system_for_works_or_is_forbidden_by_name() {
    for code in [
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 29)\n\
         def main():\n    print(int(input()) + 1)\n\
         t = threading.Thread(target=main)\nt.start()\nt.join()",
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n\
         print(int(input()) + 1)",
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 29, -1))\n\
         sys.setrecursionlimit(10 ** 5)\ndef f(n):\n    return n and 1 + f(n - 1)\n\
         print(int(input()) + 1 + f(30_000) - 30_000)",
        "import locale\nlocale.setlocale(locale.LC_ALL, '')\nprint(int(input()) + 1)",
        "import sys, os, io\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n\
         print(int(input()) + 1)",
        "import sys\nsys.stdout = open(1, 'w')\ninput = sys.stdin.readline\nprint(int(input()[:-1]) + 1)",
    ] {
        passes(code, &[("7", "8"), ("9", "10")]);
    }
    for (code, name) in [
        ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (1 << 28,) * 2)", "resource limits"),
        ("import locale\nlocale.setlocale(locale.LC_ALL, 'de_DE')", "locale"),
        ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 1)", "[Errno 1]"),
        ("open('input.txt')", "PermissionError"),
        ("import numpy", "numpy"),
    ] {
        let error = fails(code, Reason::Forbidden).failure.unwrap().error.unwrap();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn an_input_ends_in_a_line_end_as_at_a_terminal_unless_it_is_wanted_raw() {
    let shows = "import sys\nprint(repr(sys.stdin.read()))";
    let pairs = [("1 2", r"'1 2\n'"), ("1\n2\n", r"'1\n2\n'"), ("", "''")];
    passes(shows, &pairs);
    let raw = start(|options| options.limits.raw_input = true);
    let pairs = [("1 2", "'1 2'"), ("1\n", r"'1\n'")];
    assert_eq!(verdict_by(&raw, shows, &pairs).kind, VerdictKind::Pass);
}

#[test]
fn an_error_tells_its_line_and_the_failing_case() {
    let code = "n = int(input())\n\nprint(12 // (n - 3))";
    let verdict = verdict(code, &[("1", "-6"), ("3", "0"), ("4", "12")]);
    assert_eq!(verdict.kind, VerdictKind::Fail(Reason::RuntimeError));
    let kinds: Vec<_> = verdict.cases.iter().map(|case| case.kind).collect();
    assert_eq!(
        kinds,
        [VerdictKind::Pass, VerdictKind::Fail(Reason::RuntimeError), VerdictKind::Pass]
    );
    let failure = verdict.failure.unwrap();
    assert_eq!((failure.case, failure.input.as_str(), failure.line), (1, "3", Some(3)));
    assert!(failure.error.unwrap().starts_with("ZeroDivisionError: "));
    assert_eq!(fails("x = 1\ny = = 2", Reason::SyntaxError).failure.unwrap().line, Some(2));
}

#[test]
fn cases_after_one_that_ended_the_process_still_run() {
    let code = "n = int(input())\nif n == 2:\n    while True:\n        pass\nif n == 4:\n    import os\n    os.abort()\nprint(n)";
    let verdict = verdict(code, &[("1", "1"), ("2", "2"), ("3", "3"), ("4", "4"), ("5", "5")]);
    let kinds: Vec<_> = verdict.cases.iter().map(|case| case.kind).collect();
    let (pass, cpu, killed) =
        (VerdictKind::Pass, VerdictKind::Fail(Reason::CpuTime), VerdictKind::Fail(Reason::Killed));
    assert_eq!(kinds, [pass, cpu, pass, killed, pass]);
    assert_eq!(verdict.kind, cpu);
}

#[test]
fn the_programs_cpu_limit_covers_all_cases_together() {
    let judge = start(|options| options.limits.cpu_ms_per_program = 700);
    let code = "while True:\n    pass";
    let verdict = verdict_by(&judge, code, &[("1", "1"), ("2", "2"), ("3", "3"), ("4", "4")]);
    assert!(verdict.cases.iter().all(|case| case.kind == VerdictKind::Fail(Reason::CpuTime)));
    assert!((700.0..900.0).contains(&verdict.cpu_ms), "{}", verdict.cpu_ms);
    assert!(verdict.near_limit);
}

#[test]
fn a_cpu_limit_in_milliseconds_is_kept() {
    let judge = start(|options| options.limits.cpu_ms_per_case = 60);
    let spin = |ms: u32| {
        let clock = "time.process_time_ns()";
        format!(
            "import time\nend = {clock} + {ms} * 10 ** 6\nwhile {clock} < end:\n    pass\nprint(8)"
        )
    };
    let long = verdict_by(&judge, &spin(120), &[("7", "8")]);
    assert_eq!(long.kind, VerdictKind::Fail(Reason::CpuTime));
    assert!((60.0..110.0).contains(&long.cpu_ms), "{}", long.cpu_ms);
    let near = verdict_by(&judge, &spin(35), &[("7", "8")]);
    assert_eq!(near.kind, VerdictKind::Pass);
    assert!(near.near_limit);
    let short = verdict_by(&judge, &spin(5), &[("7", "8")]);
    assert!(short.kind == VerdictKind::Pass && !short.near_limit);
}

#[test]
fn random_numbers_and_hashes_repeat() {
    let code = "import random\nprint(random.random(), hash('codeseq'), list({'a', 'b', 'c', 'd'}))";
    let program = Program { code: code.into(), inputs: vec!["1".into(), "2".into()] };
    let first = judge().run(std::slice::from_ref(&program)).remove(0);
    let other = start(|options| options.mode = Mode::OneShot).run(&[program]).remove(0);
    assert_eq!(first.cases[0].output, first.cases[1].output);
    assert_eq!(first.cases[0].output, other.cases[0].output);
}

#[test]
fn with_isolated_cases_nothing_at_all_passes_between_them() {
    let code = "import math\nprint(hasattr(math, 'leak'))\nmath.leak = 1";
    let pairs = [("1", "False"), ("2", "False")];
    let isolated = start(|options| options.isolate_cases = true);
    assert_eq!(verdict_by(&isolated, code, &pairs).kind, VerdictKind::Pass);
}

#[test]
fn the_mix_passes_in_every_mode_whatever_the_workers_and_the_order() {
    let mut solved = judge_support::mix(48);
    let expect_pass = |judge: &Judge, solved: &[judge_support::Solved]| {
        let jobs: Vec<_> = solved.iter().map(|s| (Some(s.code.clone()), &s.cases[..])).collect();
        for (verdict, job) in verdicts(judge, &jobs).iter().zip(&jobs) {
            assert_eq!(verdict.kind, VerdictKind::Pass, "{:?} {verdict:?}", job.0);
        }
    };
    expect_pass(judge(), &solved);
    solved.reverse();
    expect_pass(&start(|options| options.workers = 1), &solved);
    expect_pass(&start(|options| options.workers = 5), &solved);
    expect_pass(&start(|options| options.namespaces = false), &solved);
    expect_pass(&start(|options| options.isolate_cases = true), &solved[..16]);
    expect_pass(&start(|options| options.mode = Mode::OneShot), &solved[..16]);
}

#[test]
fn batches_keep_their_order_and_report_progress() {
    let programs: Vec<Program> = (0..40)
        .map(|i| Program { code: format!("print({i})"), inputs: vec![String::new()] })
        .collect();
    let seen = Cell::new(0);
    let progress = |done: usize| {
        assert!(done >= seen.get());
        seen.set(done);
    };
    let outcomes =
        judge().run_watched(&programs, Watch { progress: Some(&progress), cancel: None });
    assert_eq!(seen.get(), 40);
    for (i, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.cases[0].output, format!("{i}\n").as_bytes());
    }
    assert!(judge().run(&[]).is_empty());
}

#[test]
fn cancelling_gives_up_what_has_not_started_and_only_that_batch() {
    let spin = Program { code: "while True:\n    pass".into(), inputs: vec![String::new()] };
    let judge = start(|options| options.workers = 1);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            judge.run(&[Program { code: "print(8)".into(), inputs: vec![String::new()] }])
        });
        let began = std::time::Instant::now();
        let cancel = || began.elapsed() > std::time::Duration::from_millis(300);
        let outcomes = judge
            .run_watched(&vec![spin.clone(); 200], Watch { progress: None, cancel: Some(&cancel) });
        assert_eq!(outcomes.len(), 200);
        assert!(outcomes.iter().filter(|outcome| outcome.is_infra()).count() > 150);
        assert_eq!(other.join().unwrap()[0].cases[0].ending, Ending::Finished);
    });
}

#[test]
fn thousands_of_concurrent_submissions_all_get_their_own_answer() {
    let judge = judge();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..1_000)
            .map(|i| {
                scope.spawn(move || {
                    let program =
                        Program { code: format!("print({i})"), inputs: vec![String::new()] };
                    judge.run(&[program.clone(), program])
                })
            })
            .collect();
        for (i, thread) in threads.into_iter().enumerate() {
            for outcome in thread.join().unwrap() {
                assert_eq!(outcome.cases[0].output, format!("{i}\n").as_bytes());
            }
        }
    });
}

#[test]
fn the_cache_answers_equal_programs_without_running_them() {
    let judge = start(|options| options.cache_entries = 10);
    let program =
        Program { code: "import time\nprint(time.time_ns())".into(), inputs: vec!["1".into()] };
    let first = judge.run(std::slice::from_ref(&program));
    assert_eq!(first, judge.run(std::slice::from_ref(&program)));
    let other = Program { inputs: vec!["2".into()], ..program };
    assert_ne!(first, judge.run(&[other]));
}

#[test]
fn with_a_cache_equal_programs_of_a_batch_run_once() {
    let judge = start(|options| options.cache_entries = 10);
    let program =
        Program { code: "import time\nprint(time.time_ns())".into(), inputs: vec!["1".into()] };
    let other = Program { inputs: vec!["2".into()], ..program.clone() };
    let done = Cell::new(0);
    let watch = Watch { progress: Some(&|now| done.set(now)), cancel: None };
    let outcomes = judge.run_watched(&[program.clone(), other, program], watch);
    assert_eq!(outcomes[0], outcomes[2]);
    assert_ne!(outcomes[0], outcomes[1]);
    assert_eq!(done.get(), 3);
}

#[test]
fn a_byte_order_mark_before_the_program_is_skipped() {
    passes("\u{feff}print(int(input()) + 1)", &[("7", "8"), ("8", "9")]);
}

#[test]
fn with_a_tiny_output_limit_only_the_programs_own_output_appears() {
    for mode in [Mode::ForkServer, Mode::OneShot] {
        let judge = start(|options| (options.mode, options.limits.output_bytes) = (mode, 2));
        let program = |code: &str| Program { code: code.into(), inputs: vec![String::new(); 3] };
        for case in &judge.run(&[program("")])[0].cases {
            assert_eq!((&case.ending, case.output.len()), (&Ending::Finished, 0));
        }
        for case in &judge.run(&[program("print(123)")])[0].cases {
            assert_eq!(case.ending, Ending::Failed(Reason::OutputLimit));
        }
    }
}

#[test]
fn a_program_that_forges_its_end_and_goes_on_is_ended_by_its_own_limits() {
    let forge = "import os\nfor fd in range(3, 32):\n    try:\n        os.lseek(fd, 0, 1)\n    except OSError as error:\n        if error.errno == 29:\n            os.write(fd, b'D\\0\\0\\0\\0')\n            os.close(fd)\n";
    let kinds = |rest: &str| {
        let pairs = [("1", "2"), ("2", "3"), ("3", "4")];
        let verdict = verdict(&format!("{forge}{rest}"), &pairs);
        assert!(verdict.cpu_ms < 1_700.0, "{}", verdict.cpu_ms);
        verdict.cases.iter().map(|case| case.kind).collect::<Vec<_>>()
    };
    let wrong = VerdictKind::Fail(Reason::WrongAnswer);
    let (sleeps, spins) = (kinds("import time\ntime.sleep(1000)"), kinds("while True:\n    pass"));
    assert_eq!(
        sleeps,
        [wrong, VerdictKind::Fail(Reason::WallTime), VerdictKind::Fail(Reason::WallTime)]
    );
    assert_eq!(spins[..2], [wrong, VerdictKind::Fail(Reason::CpuTime)]);
}

#[test]
fn what_a_program_names_and_could_leave_behind_is_gone_in_its_next_case() {
    let code = "import threading\nthreading.leak = getattr(threading, 'leak', 0) + 1\nprint(threading.leak)";
    passes(code, &[("1", "1"), ("2", "1")]);
}

/// A directory with a problem and its solution, and `train judge` on them.
fn command(dir: &std::path::Path, arguments: &[&str]) -> std::process::Output {
    let problem =
        "\u{feff}{\"problem_id\":7,\"tests\":[{\"input\":1,\"output\":2}],\"tolerance\":0.1}\n";
    let solution = "{\"problem_id\":7,\"code\":\"print(2.05)\"}\n";
    std::fs::write(dir.join("p.jsonl"), problem).unwrap();
    std::fs::write(dir.join("s.jsonl"), solution).unwrap();
    std::process::Command::new(env!("CARGO_BIN_EXE_train"))
        .arg("judge")
        .args(arguments)
        .current_dir(dir)
        .stdin(std::fs::File::open(dir.join("p.jsonl")).unwrap())
        .output()
        .unwrap()
}

#[test]
fn problems_may_come_through_a_pipe_and_verdicts_leave_through_one_with_ids_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = ["--problems", "p.fifo", "--solutions", "s.jsonl", "--out", "/dev/stdout"];
    nix::unistd::mkfifo(&dir.path().join("p.fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let writer = {
        let dir = dir.path().to_owned();
        std::thread::spawn(move || {
            std::fs::write(
                dir.join("p.fifo"),
                r#"{"problem_id":"7","tests":[{"input":1,"output":2}],"tolerance":0.1}"#,
            )
        })
    };
    let output = command(dir.path(), &pipe);
    writer.join().unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(r#"{"problem_id":7,"verdict":"pass""#), "{text}");
    assert!(text.contains("1 solutions: 1 pass"), "{text}");
}

#[test]
fn a_response_that_is_no_text_is_a_row_without_code() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [
        r#""response":null"#,
        r#""response":["print(2)"]"#,
        r#""response":"\ud800""#,
        r#""code":null"#,
        r#""code":"print(2)","response":null"#,
    ]
    .map(|answer| format!("{{\"problem_id\":7,{answer}}}\n"));
    let no_utf8 = b"{\"problem_id\":7,\"response\":\"\xff\"}\n".as_slice();
    std::fs::write(dir.path().join("rows.jsonl"), [rows.concat().as_bytes(), no_utf8].concat())
        .unwrap();
    let arguments = ["--problems", "p.jsonl", "--solutions", "rows.jsonl", "--out", "o.jsonl"];
    let output = command(dir.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(dir.path().join("o.jsonl")).unwrap();
    let no_code = r#"{"problem_id":7,"verdict":"fail","reason":"no_code""#;
    let found: Vec<bool> = text.lines().map(|line| line.starts_with(no_code)).collect();
    assert_eq!(found, [true, true, true, true, false, true], "{text}");
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    for (out, why) in [
        ("p.jsonl", "input"),
        ("s.jsonl", "input"),
        (".", "directory"),
        ("p.jsonl/out", "Not a directory"),
    ] {
        let output =
            command(dir.path(), &["--problems", "p.jsonl", "--solutions", "s.jsonl", "--out", out]);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert!(log.contains(why) && log.lines().count() == 1, "{log}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

#[test]
fn layers_are_reported_as_the_kernel_sees_them() {
    let judge = start(|_| {});
    judge.run(&[Program { code: String::new(), inputs: vec![String::new()] }]);
    let layers = judge.layers();
    assert!(layers.no_new_privs && layers.rlimits && layers.confines());
    let launcher = judge.server_pids()[0];
    let children =
        std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", children.trim())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    if layers.seccomp {
        assert_eq!(field("Seccomp"), "2");
    }
    if layers.capabilities_dropped {
        assert_eq!(field("CapEff"), "0000000000000000");
        assert_eq!(field("CapPrm"), "0000000000000000");
    }
    if layers.user_dropped && !layers.namespaces.contains(&"user".to_owned()) {
        assert!(!field("Uid").split_whitespace().any(|id| id == "0"));
    }
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = std::fs::read_link(format!("/proc/{}/ns/net", children.trim()));
    if let (true, Ok(theirs)) = (layers.namespaces.contains(&"net".to_owned()), theirs) {
        assert_ne!(own, theirs);
    }
}
