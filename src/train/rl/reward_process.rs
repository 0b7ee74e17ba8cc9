//! Rewards from an external program: JSON Lines to its standard input, JSON Lines back.
//!
//! The program runs as long as the run and answers each question, in any order, with `{"id": 3, "reward":
//! 0.5}`. No two questions of a run have the same id. What it writes to standard error is shown. A program
//! that dies, or answers nothing for `timeout_secs`, is started again and asked the questions that are
//! left; after [`STARTS`] starts without an answer the run stops. The run also stops if the program writes
//! anything else, or leaves questions unread for as long. The program is the user's own code and not
//! sandboxed. It should end when its standard input ends, and it is killed when the run ends. Rewards are
//! asked for only when all responses of a round are generated.

use crate::base::error::usage;
use crate::base::limits::refuse_outside;
use crate::base::line_process::{Heard, LONGEST_LINE, LineProcess};
use crate::rollout::attempt::Attempt;
use crate::sandbox::CaseVerdict;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::time::Duration;

/// The run stops after this many starts in a row without an answer.
const STARTS: usize = 3;
/// An error shows this many characters of a wrong line.
const SHOWN: usize = 80;

/// The squares of rewards up to this are finite in double precision.
const LARGEST_REWARD: f64 = 1e30;

/// The table `[external_reward]`: a program that gives the rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalReward {
    /// The program and its arguments. It runs in the current directory.
    pub command: Vec<String>,
    /// The program is started again after this many seconds without an answer.
    #[serde(default = "a_minute")]
    pub timeout_secs: f64,
}

fn a_minute() -> f64 {
    60.0
}

impl ExternalReward {
    /// Refuses what could not be run; `table` is the table's name in errors.
    pub(crate) fn check(&self, table: &str) -> Result<()> {
        if self.command.is_empty() {
            return Err(usage(format!("{table}.command is empty: name a program")));
        }
        refuse_outside(table, &[("timeout_secs", self.timeout_secs, 1e-3..=1e6)])
    }
}

/// A response for which a reward is asked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Question<'a> {
    /// The problem, as its file has it.
    problem: Box<RawValue>,
    response: &'a str,
    num_tokens: usize,
    /// Whether the response keeps the format that the prompt asks for.
    format: bool,
    /// Whether the answer is right in every case.
    passed: bool,
    cases: &'a [CaseVerdict],
}

impl<'a> Question<'a> {
    pub(crate) fn new(problem: Box<RawValue>, attempt: &'a Attempt) -> Self {
        Self {
            problem,
            response: &attempt.text,
            num_tokens: attempt.rollout.tokens.len(),
            format: attempt.grade.format_ok(),
            passed: attempt.grade.passed(),
            cases: &attempt.grade.verdict.cases,
        }
    }
}

/// A line that the program reads.
#[derive(Serialize)]
struct Asked<'q> {
    /// The id, which the answer repeats.
    id: usize,
    #[serde(flatten)]
    question: &'q Question<'q>,
}

#[derive(Deserialize)]
struct Answer {
    id: usize,
    reward: f64,
}

pub(crate) struct RewardProcess {
    config: ExternalReward,
    running: Option<LineProcess>,
    /// The number of questions of the run so far.
    num_asked: usize,
}

/// How an exchange with the program ended.
enum Exchange {
    /// Every question has its answer.
    Whole,
    /// The program cannot be used any more, for this reason.
    Lost(String),
}

/// The questions of one step, and the answers so far.
struct Step<'q> {
    /// The id of the first question; those of the others follow it.
    first_id: usize,
    questions: &'q [Question<'q>],
    rewards: Vec<Option<f64>>,
}

impl RewardProcess {
    /// Starts the program, so that one that cannot be started is noticed before the run.
    pub(crate) fn start(config: &ExternalReward) -> Result<Self> {
        let running = Some(start(&config.command)?);
        Ok(Self { config: config.clone(), running, num_asked: 0 })
    }

    /// Returns the reward of each response.
    pub(crate) fn ask(&mut self, questions: &[Question<'_>]) -> Result<Vec<f64>> {
        if let Some(line) = self.running.as_ref().and_then(LineProcess::waiting_line) {
            return Err(refuse(&line, "no question was open"));
        }
        let first_id = self.num_asked;
        self.num_asked += questions.len();
        let mut step = Step { first_id, questions, rewards: vec![None; questions.len()] };
        let mut fruitless = 0;
        while step.num_open() > 0 {
            let before = step.num_open();
            let exchanged = self.exchange(&mut step);
            if !matches!(exchanged, Ok(Exchange::Whole)) {
                self.running = None;
            }
            let Exchange::Lost(loss) = exchanged? else { continue };
            fruitless = if step.num_open() < before { 1 } else { fruitless + 1 };
            let program = self.config.command.join(" ");
            if fruitless == STARTS {
                return Err(usage(format!(
                    "the reward process `{program}` {loss}, {STARTS} times without an answer: {} of \
                     {} responses have no reward",
                    step.num_open(),
                    questions.len()
                )));
            }
            tracing::warn!("the reward process `{program}` {loss}: starting it again");
        }
        Ok(step.rewards.into_iter().flatten().collect())
    }

    /// Asks the questions that have no answer yet, and takes answers until all are there or the process is
    /// lost.
    fn exchange(&mut self, step: &mut Step<'_>) -> Result<Exchange> {
        let ExternalReward { command, timeout_secs } = &self.config;
        let timeout = Duration::from_secs_f64(*timeout_secs);
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(start(command)?),
        };
        running.tell(step.open_questions()?);
        while step.num_open() > 0 {
            match running.line(timeout)? {
                Heard::Line(line) => step.take(&line)?,
                Heard::End => return Ok(Exchange::Lost("ended".to_owned())),
                Heard::Nothing => {
                    return Ok(Exchange::Lost(format!("answered nothing for {timeout_secs} s")));
                }
            }
        }
        if !running.is_written(timeout)? {
            return Err(usage(format!(
                "the reward process `{}` answered all questions and left some unread for {timeout_secs} s; \
                 it has to read each line of its standard input",
                command.join(" ")
            )));
        }
        Ok(Exchange::Whole)
    }
}

fn start(command: &[String]) -> Result<LineProcess> {
    LineProcess::start(command).context("external_reward.command")
}

impl Step<'_> {
    fn num_open(&self) -> usize {
        self.rewards.iter().filter(|reward| reward.is_none()).count()
    }

    /// Returns the lines that ask the questions without an answer.
    fn open_questions(&self) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        for (id, (question, reward)) in
            (self.first_id..).zip(self.questions.iter().zip(&self.rewards))
        {
            if reward.is_none() {
                serde_json::to_writer(&mut lines, &Asked { id, question })
                    .context("encoding a question")?;
                lines.push(b'\n');
            }
        }
        Ok(lines)
    }

    fn take(&mut self, line: &[u8]) -> Result<()> {
        if line.len() == LONGEST_LINE && !line.ends_with(b"\n") {
            return Err(refuse(line, "the line is longer than 1 MiB"));
        }
        let Answer { id, reward } =
            serde_json::from_slice(line).map_err(|e| refuse(line, &e.to_string()))?;
        if reward.abs() > LARGEST_REWARD {
            return Err(refuse(
                line,
                "the reward is beyond 1e30, so no deviation of a group can be taken",
            ));
        }
        let Some(place) = id.checked_sub(self.first_id) else {
            return Err(refuse(line, "the question has an answer already"));
        };
        match self.rewards.get_mut(place) {
            None => Err(refuse(line, "no question has that id")),
            Some(Some(_)) => Err(refuse(line, "the question has an answer already")),
            Some(missing) => {
                *missing = Some(reward);
                Ok(())
            }
        }
    }
}

fn refuse(line: &[u8], why: &str) -> anyhow::Error {
    let start = &line[..line.len().min(4 * SHOWN)];
    let shown: String = String::from_utf8_lossy(start).trim_end().chars().take(SHOWN).collect();
    usage(format!(
        "the reward process wrote {shown:?}: {why}; it has to answer each question once with a line \
         like {{\"id\": 0, \"reward\": 0.5}} and write nothing else to standard output"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::rollout::test_support::group;
    use crate::sandbox::{Reason, VerdictKind};
    use crate::tasks::program;

    /// Runs a Python program, and asks it in `steps` steps for the rewards of five responses of lengths 0
    /// to 4. Returns those of the last step.
    fn rewards_of_steps(
        program: &str,
        timeout_secs: f64,
        (steps, response): (usize, &str),
    ) -> Result<Vec<f64>> {
        let command = ["python3", "-c", program].map(str::to_owned).to_vec();
        let config = ExternalReward { command, timeout_secs };
        config.check("external_reward").unwrap();
        let mut attempts = group(&[(response, VerdictKind::Pass); 5]).attempts;
        for (length, attempt) in attempts.iter_mut().enumerate() {
            attempt.rollout.tokens = vec![7; length];
        }
        let problem = RawValue::from_string("{}".to_owned()).unwrap();
        let question = |attempt| Question::new(problem.clone(), attempt);
        let questions: Vec<Question<'_>> = attempts.iter().map(question).collect();
        let mut process = RewardProcess::start(&config)?;
        for _ in 1..steps {
            process.ask(&questions)?;
        }
        process.ask(&questions)
    }

    fn rewards_of(program: &str, timeout_secs: f64) -> Result<Vec<f64>> {
        rewards_of_steps(program, timeout_secs, (1, ""))
    }

    fn refusal(program: &str, timeout_secs: f64) -> String {
        let error = rewards_of(program, timeout_secs).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        let text = format!("{error:#}");
        assert!(!text.contains('\n'), "{text}");
        text
    }

    const TENTHS: &str = "
import json, sys
def answer(line):
    asked = json.loads(line)
    print(json.dumps({'id': asked['id'], 'reward': asked['num_tokens'] / 10}), flush=True)
";

    #[test]
    fn answers_may_come_in_any_order() {
        let program = format!(
            "{TENTHS}
lines = [sys.stdin.readline() for _ in range(5)]
for line in reversed(lines): answer(line)"
        );
        assert_eq!(rewards_of(&program, 60.0).unwrap(), [0.0, 0.1, 0.2, 0.3, 0.4]);
    }

    #[test]
    fn the_program_of_the_documentation_pays_the_share_of_tests() {
        let program = program(include_str!("../../../docs/extending.md")).unwrap();
        let command = vec!["python3".to_owned(), "-c".to_owned(), program];
        let mut process = RewardProcess::start(&ExternalReward { command, timeout_secs: 60.0 });
        let process = process.as_mut().unwrap();
        let wrong = VerdictKind::Fail(Reason::WrongAnswer);
        let mut attempts = group(&[("```python\nx\n```", wrong), ("no program", wrong)]).attempts;
        for attempt in &mut attempts {
            let case = |kind| CaseVerdict { input: "1".into(), kind, output: None, cpu_ms: 0.0 };
            attempt.grade.verdict.cases = [VerdictKind::Pass, wrong].map(case).to_vec();
        }
        let problem = RawValue::from_string("{}".to_owned()).unwrap();
        let question = |attempt| Question::new(problem.clone(), attempt);
        let questions: Vec<Question<'_>> = attempts.iter().map(question).collect();
        assert_eq!(process.ask(&questions).unwrap(), [0.5 - 0.002, -1.0]);
    }

    #[test]
    fn a_process_that_dies_or_hangs_is_asked_what_is_left() {
        for end in ["sys.exit(1)", "import time; time.sleep(1000)"] {
            let program = format!(
                "{TENTHS}
for number, line in enumerate(sys.stdin):
    answer(line)
    if number == 1: {end}"
            );
            assert_eq!(rewards_of(&program, 5.0).unwrap(), [0.0, 0.1, 0.2, 0.3, 0.4], "{end}");
        }
    }

    #[test]
    fn a_process_that_never_answers_ends_the_run_in_one_line() {
        let text = refusal("", 60.0);
        assert!(text.contains("ended, 3 times without an answer: 5 of 5"), "{text}");
        let text = refusal("import time; time.sleep(1000)", 0.2);
        assert!(text.contains("answered nothing for 0.2 s, 3 times"), "{text}");
    }

    #[test]
    fn steps_follow_each_other_with_ids_of_their_own() {
        let program = format!(
            "{TENTHS}
seen = set()
for line in sys.stdin:
    id = json.loads(line)['id']
    assert id not in seen
    seen.add(id)
    answer(line)"
        );
        assert_eq!(rewards_of_steps(&program, 60.0, (3, "")).unwrap(), [0.0, 0.1, 0.2, 0.3, 0.4]);
    }

    #[test]
    fn a_surplus_answer_is_never_that_of_another_step() {
        for surplus in
            ["answer(line)", "print(json.dumps({'id': id + 1, 'reward': 9.0}), flush=True)"]
        {
            let program = format!(
                "{TENTHS}
for line in sys.stdin:
    id = json.loads(line)['id']
    answer(line)
    if id == 4: {surplus}"
            );
            let text = format!("{:#}", rewards_of_steps(&program, 60.0, (2, "")).unwrap_err());
            assert!(text.contains("the reward process wrote \"{"), "{text}");
        }
    }

    #[test]
    fn a_process_that_answers_without_reading_ends_the_run() {
        let program = "
import time
for id in range(5): print('{\"id\": %d, \"reward\": 1}' % id, flush=True)
time.sleep(1000)";
        let unread = "x".repeat(1 << 20);
        let error = rewards_of_steps(program, 1.0, (1, &unread)).unwrap_err();
        assert!(error.to_string().contains("left some unread for 1 s"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let program = "
import sys
input()
while True: sys.stdout.write('x' * 65536)";
        let text = refusal(program, 60.0);
        assert!(text.contains("longer than 1 MiB") && text.len() < 500, "{text}");
    }

    #[test]
    fn nonsense_is_shown_with_what_was_expected() {
        let long = "x".repeat(10_000);
        for (output, part) in [
            ("hello", "wrote \"hello\""),
            (long.as_str(), "wrote \"xxx"),
            ("{\"id\": 0, \"reward\": NaN}", "expected"),
            ("{\"id\": 0, \"reward\": -1e31}", "beyond 1e30"),
            ("{\"id\": 0}", "missing field `reward`"),
            ("{\"id\": 7, \"reward\": 1}", "no question has that id"),
            ("{\"id\": 0, \"reward\": 1}\n{\"id\": 0, \"reward\": 1}", "an answer already"),
        ] {
            let text = refusal(&format!("input(); print({output:?})"), 60.0);
            assert!(text.contains(part) && text.len() < 500, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let command = vec!["no-such-program".to_owned()];
        let config = ExternalReward { command, timeout_secs: 1.0 };
        let error = RewardProcess::start(&config).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        let text = format!("{error:#}");
        assert!(text.contains("external_reward.command: cannot start no-such-program"), "{text}");
    }
}
