//! The procedural generator against plain Python: programs, slips, stories, splits, determinism.

use codeseq::data::prompt::GtgPrompt;
use codeseq::problems::attempt::attempts;
use codeseq::problems::families;
use codeseq::problems::family::{Family, Pattern};
use codeseq::problems::{Config, Program, card, generate, judge, story};
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs trusted programs in one Python process; no isolation, a fifth of a second of CPU for each input.
const RUNNER: &str = r#"
import contextlib, io, json, signal, sys
class Slow(Exception):
    pass
def slow(*_):
    raise Slow()
signal.signal(signal.SIGVTALRM, slow)
def one(code, text):
    out = io.StringIO()
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)
    try:
        with contextlib.redirect_stdout(out):
            exec(code, {"input": lambda: text})
        return out.getvalue().strip()
    except Slow:
        return "slow"
    except Exception:
        return None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
for line in sys.stdin:
    code, inputs = json.loads(line)
    results = []
    for text in inputs:
        results.append("slow" if "slow" in results else one(code, text))
    print(json.dumps(results))
"#;

fn python(programs: &[Program]) -> anyhow::Result<Vec<Vec<Option<String>>>> {
    let mut child = Command::new("python3")
        .args(["-c", RUNNER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("piped");
    let lines: Vec<String> = programs
        .iter()
        .map(|p| serde_json::to_string(&(&p.code, &p.inputs)).expect("strings encode"))
        .collect();
    let writer = std::thread::spawn(move || {
        for line in lines {
            writeln!(stdin, "{line}")?;
        }
        Ok::<(), std::io::Error>(())
    });
    let output = child.wait_with_output()?;
    writer.join().expect("the writer does not panic")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .map(|line| serde_json::from_str(line).expect("the runner speaks JSON"))
        .collect())
}

/// A few patterns of every family.
fn some_patterns(families: &[Family], each: usize) -> Vec<Pattern<'_>> {
    let mut patterns = Vec::new();
    for family in families {
        let mut random = codeseq::base::rng::Stream::new(11, &[]);
        let choices = family.choices(200, &mut random);
        let usable = choices.into_iter().map(|n| Pattern::new(family, n));
        patterns.extend(usable.filter(|p| story::inputs(p, 11).is_some()).take(each));
    }
    patterns
}

#[test]
fn every_familys_program_reproduces_its_terms() {
    let families = families::all();
    let patterns = some_patterns(&families, 4);
    let programs: Vec<Program> = patterns
        .iter()
        .map(|p| Program {
            code: p.family.solution(p.numbers),
            inputs: (0..16).map(|i| (p.family.start + i).to_string()).collect(),
        })
        .collect();
    let mut wrong = Vec::new();
    for (pattern, outputs) in patterns.iter().zip(python(&programs).unwrap()) {
        for (i, output) in outputs.iter().enumerate() {
            if output.as_ref() != Some(&pattern.terms[i].to_string()) {
                wrong.push(format!("{} at {i}: {output:?}, {}", pattern.id(), pattern.terms[i]));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_slip_of_a_family_applies_and_fails_for_some_numbers_and_none_runs_forever() {
    let families = families::all();
    for family in &families {
        for slip in &family.slips {
            assert!(family.body().contains(slip.find), "{}: no `{}`", family.name, slip.find);
            assert!(slip.reason.split(' ').count() < 12, "{}: {}", family.name, slip.reason);
        }
    }
    let patterns = some_patterns(&families, 4);
    let mut slow = Vec::new();
    let mut run = |programs: &[Program]| {
        let outputs = python(programs)?;
        for (program, outputs) in programs.iter().zip(&outputs) {
            if outputs.iter().any(|o| o.as_deref() == Some("slow")) {
                slow.push(program.code.clone());
            }
        }
        Ok(outputs)
    };
    let judged = judge(&patterns, 11, &mut run).unwrap();
    let mut idle = Vec::new();
    for family in &families {
        let of_family = || judged.iter().filter(|j| j.pattern.family.name == family.name);
        for slip in &family.slips {
            let fails = of_family().any(|j| {
                let code = family
                    .program(j.pattern.numbers, |body| body.replacen(slip.find, slip.replace, 1));
                j.failures.iter().any(|f| f.attempt.code == code)
            });
            if !fails {
                idle.push(format!("{}: `{}` -> `{}`", family.name, slip.find, slip.replace));
            }
        }
        for judged in of_family() {
            let count = judged.failures.len();
            if count < 5 {
                idle.push(format!("{}: only {count} failing attempts", judged.pattern.id()));
            }
        }
    }
    idle.dedup();
    idle.extend(slow.into_iter().map(|code| format!("slow: {code}")));
    assert!(idle.is_empty(), "{}", idle.join("\n"));
}

#[test]
fn every_story_is_short_tells_all_numbers_and_does_not_end_open() {
    let families = families::all();
    for pattern in some_patterns(&families, 3) {
        let inputs = story::inputs(&pattern, 11).unwrap();
        assert!(pattern.family.stories.len() >= 3, "{}", pattern.family.name);
        for telling in 0..3 {
            let problem = story::problem(&pattern, &inputs, 11, telling);
            let text = &problem.description;
            let digits: Vec<&str> = text.split(|c: char| !c.is_ascii_digit()).collect();
            for value in pattern.values() {
                assert!(digits.contains(&value.to_string().as_str()), "{value} in: {text}");
            }
            assert!(text.split_whitespace().count() <= 60, "{text}");
            assert!(text.contains('n') && text.ends_with(['.', '?']), "{text}");
            assert!((5..=7).contains(&problem.tests.len()));
            let second: i64 = problem.examples[1].input.parse().unwrap();
            assert_eq!(problem.tests[0].input, (second + 1).to_string());
            for case in &problem.tests {
                let n: i64 = case.input.parse().unwrap();
                assert_eq!(problem.terms[(n - problem.offset) as usize], case.output);
                assert!(problem.examples.iter().all(|e| e.input != case.input));
            }
        }
    }
}

fn small() -> Config {
    Config {
        seed: 5,
        sft: 240,
        sft_patterns: 120,
        rl: 60,
        test: 30,
        unseen: 10,
        pretrain: 200,
        rounds: Config::PAPER_ROUNDS.to_vec(),
    }
}

#[test]
fn a_small_set_is_written_whole_and_byte_for_byte_again() {
    let prompt = GtgPrompt::bundled().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cards: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            let dataset = generate(&small(), &prompt, &mut |p| python(p)).unwrap();
            card::write(&dataset, &dir.path().join(name)).unwrap()
        })
        .collect();
    assert_eq!(cards[0].files, cards[1].files);
    assert_eq!(cards[0].files.len(), 5);
    assert_eq!(cards[0].rounds.iter().sum::<usize>(), 240);
    let dataset = generate(&small(), &prompt, &mut |p| python(p)).unwrap();
    for sample in &dataset.sft {
        let response = &sample.messages[1].content;
        assert_eq!(response.matches("attempt:").count() as u32, sample.rounds.unwrap());
        assert_eq!(response.matches("```").count(), 2, "{response}");
        assert!((2..=3).contains(&response.matches("case: ").count()), "{response}");
        let prompt_words = sample.messages[0].content.split_whitespace().count();
        assert!(prompt_words < 150, "{}", sample.messages[0].content);
    }
    for sample in &dataset.pretrain {
        let [cue, answer] = [0, 1].map(|i| sample.messages[i].content.as_str());
        let problem = |text: &str| text.contains("Example: ");
        let response = |text: &str| text.contains("<think>\n");
        assert!(!(problem(cue) || problem(answer)) || !(response(cue) || response(answer)));
    }
    assert!(card::write(&dataset, &dir.path().join("a")).is_err(), "nothing is overwritten");
}

#[test]
fn attempts_never_repeat_the_solution() {
    let families = families::all();
    for pattern in some_patterns(&families, 2) {
        let solution = pattern.family.solution(pattern.numbers);
        assert!(attempts(&pattern).iter().all(|a| a.code != solution));
    }
}
