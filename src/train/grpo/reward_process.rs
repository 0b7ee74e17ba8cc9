//! Rewards from a program of the user's: JSON Lines to its standard input, JSON Lines back.
//!
//! Contract: the program runs as long as the run and answers each question, in any order, with
//! `{"id": 3, "reward": 0.5}`; what it writes to standard error is shown. One that dies, or answers
//! nothing for `timeout_secs`, is started again and asked what is left; after [`STARTS`] starts without
//! an answer the run stops. So does one that writes anything else, at once. It is the user's own code
//! and not sandboxed; when its standard input ends it should end. Left out: rewards while other
//! responses are still being generated.

use crate::base::error::{Interrupted, usage};
use crate::base::interrupt;
use crate::data::problem::Problem;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Starts in a row without an answer after which the run stops.
const STARTS: usize = 3;
/// Between two looks at whether the user wants to stop.
const POLL: Duration = Duration::from_millis(100);
/// Characters of a wrong line that an error shows.
const SHOWN: usize = 80;

/// `[external_reward]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalReward {
    /// The program and its arguments, run in the current directory.
    pub command: Vec<String>,
    /// Seconds without an answer after which it is started again.
    #[serde(default = "a_minute")]
    pub timeout_secs: f64,
}

fn a_minute() -> f64 {
    60.0
}

impl ExternalReward {
    /// Refuses what could not be run.
    pub fn check(&self) -> Result<()> {
        if self.command.is_empty() {
            return Err(usage("external_reward.command is empty: name a program"));
        }
        super::super::refuse_outside(&[(
            "external_reward.timeout_secs",
            self.timeout_secs,
            1e-3..=1e6,
        )])
    }
}

/// A response whose reward is asked for.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Question<'a> {
    /// Names the answer.
    pub(super) id: usize,
    pub(super) problem: &'a Problem,
    pub(super) response: &'a str,
    pub(super) num_tokens: usize,
    /// Whether the response has the thinking and the program that the prompt asks for.
    pub(super) format: bool,
    /// Whether its program passes every test.
    pub(super) passed: bool,
}

#[derive(Deserialize)]
struct Answer {
    id: usize,
    reward: f64,
}

/// The user's program.
pub(super) struct RewardProcess {
    config: ExternalReward,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// Absent once it was found closed.
    input: Option<BufWriter<ChildStdin>>,
    lines: Receiver<String>,
}

impl RewardProcess {
    /// Starts it, so that one that cannot be started is noticed before the run.
    pub(super) fn start(config: &ExternalReward) -> Result<Self> {
        let running = Some(Running::start(&config.command)?);
        Ok(Self { config: config.clone(), running })
    }

    /// The reward of each response; `questions[i].id` is `i`.
    pub(super) fn ask(&mut self, questions: &[Question<'_>]) -> Result<Vec<f64>> {
        let mut rewards: Vec<Option<f64>> = vec![None; questions.len()];
        let mut fruitless = 0;
        while rewards.contains(&None) {
            let before = unanswered(&rewards);
            let Err(loss) = self.exchange(questions, &mut rewards)? else { continue };
            self.running = None;
            fruitless = if unanswered(&rewards) < before { 1 } else { fruitless + 1 };
            let program = self.config.command.join(" ");
            if fruitless == STARTS {
                return Err(usage(format!(
                    "the reward process `{program}` {loss}, {STARTS} times without an answer: {} of \
                     {} responses have no reward",
                    unanswered(&rewards),
                    questions.len()
                )));
            }
            tracing::warn!("the reward process `{program}` {loss}: starting it again");
        }
        Ok(rewards.into_iter().flatten().collect())
    }

    /// Asks what has no reward yet and takes answers until all are there, or the process is lost:
    /// then says how.
    fn exchange(
        &mut self,
        questions: &[Question<'_>],
        rewards: &mut [Option<f64>],
    ) -> Result<Result<(), String>> {
        if self.running.is_none() {
            self.running = Some(Running::start(&self.config.command)?);
        }
        let Some(running) = &mut self.running else { return Ok(Ok(())) };
        let open: Vec<&Question<'_>> =
            questions.iter().filter(|question| rewards[question.id].is_none()).collect();
        let Running { child, input, lines } = running;
        std::thread::scope(|scope| {
            // A pipe holds only so much: questions are written while answers are read.
            scope.spawn(|| {
                if input.as_mut().is_some_and(|input| write(input, &open).is_err()) {
                    *input = None;
                }
            });
            let taken = take_answers(&self.config, lines, rewards);
            if !matches!(taken, Ok(Ok(()))) {
                // Ends the writing too.
                let _ = child.kill();
            }
            taken
        })
    }
}

fn unanswered(rewards: &[Option<f64>]) -> usize {
    rewards.iter().filter(|reward| reward.is_none()).count()
}

fn write(input: &mut BufWriter<ChildStdin>, questions: &[&Question<'_>]) -> std::io::Result<()> {
    for question in questions {
        serde_json::to_writer(&mut *input, question)?;
        input.write_all(b"\n")?;
    }
    input.flush()
}

/// Fills in rewards until none is missing or the process is lost.
fn take_answers(
    config: &ExternalReward,
    lines: &Receiver<String>,
    rewards: &mut [Option<f64>],
) -> Result<Result<(), String>> {
    let timeout = Duration::from_secs_f64(config.timeout_secs);
    let mut last_answer = Instant::now();
    while rewards.contains(&None) {
        if interrupt::requested() {
            return Err(Interrupted.into());
        }
        match lines.recv_timeout(POLL.min(timeout)) {
            Ok(line) => {
                take(&line, rewards)?;
                last_answer = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(Err("ended".to_owned())),
            Err(RecvTimeoutError::Timeout) if last_answer.elapsed() >= timeout => {
                return Ok(Err(format!("answered nothing for {} s", config.timeout_secs)));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    Ok(Ok(()))
}

fn take(line: &str, rewards: &mut [Option<f64>]) -> Result<()> {
    let refuse = |why: &str| {
        let shown: String = line.chars().take(SHOWN).collect();
        usage(format!(
            "the reward process wrote {shown:?}: {why}; it has to answer each question once with a line \
             like {{\"id\": 0, \"reward\": 0.5}} and write nothing else to standard output"
        ))
    };
    let Answer { id, reward } = serde_json::from_str(line).map_err(|e| refuse(&e.to_string()))?;
    match rewards.get_mut(id) {
        None => Err(refuse("no question has that id")),
        Some(Some(_)) => Err(refuse("the question has an answer already")),
        Some(missing) => {
            *missing = Some(reward);
            Ok(())
        }
    }
}

impl Running {
    fn start(command: &[String]) -> Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(usage("external_reward.command is empty: name a program"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the run, which then ends it.
            .process_group(0)
            .spawn()
            .map_err(|e| usage(format!("external_reward.command: cannot start {program}: {e}")))?;
        let input = child.stdin.take().map(BufWriter::new);
        let output = child.stdout.take().context("the reward process has no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, input, lines })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::exit_code;
    use crate::train::samples::tests::problem;

    /// The rewards that a Python program gives to five responses of lengths 0 to 4.
    fn rewards_of(program: &str, timeout_secs: f64) -> Result<Vec<f64>> {
        let command = ["python3", "-c", program].map(str::to_owned).to_vec();
        let config = ExternalReward { command, timeout_secs };
        config.check().unwrap();
        let problem = problem("p");
        let question = |id| Question {
            id,
            problem: &problem,
            response: "",
            num_tokens: id,
            format: true,
            passed: false,
        };
        let questions: Vec<Question<'_>> = (0..5).map(question).collect();
        RewardProcess::start(&config)?.ask(&questions)
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
    fn nonsense_is_shown_with_what_was_expected() {
        let long = "x".repeat(10_000);
        for (output, part) in [
            ("hello", "wrote \"hello\""),
            (long.as_str(), "wrote \"xxx"),
            ("{\"id\": 0, \"reward\": NaN}", "expected"),
            ("{\"id\": 0}", "missing field `reward`"),
            ("{\"id\": 7, \"reward\": 1}", "no question has that id"),
            ("{\"id\": 0, \"reward\": 1}\n{\"id\": 0, \"reward\": 1}", "an answer already"),
        ] {
            let text = refusal(&format!("print({output:?})"), 60.0);
            assert!(text.contains(part) && text.len() < 500, "{text}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let command = vec!["no-such-program".to_owned()];
        let config = ExternalReward { command, timeout_secs: 1.0 };
        let error = RewardProcess::start(&config).err().unwrap();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
