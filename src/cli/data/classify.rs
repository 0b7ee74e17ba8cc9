//! `train data classify` asks a model about every sample whether it is code, and stores the answers for
//! `code_answers` of a source. The paper leaves code out of Tülu 3 in this way.
//!
//! An answer is written when it comes, so a run that was stopped continues where it was; a sample that has
//! an answer is not asked about again. The model answers at temperature 0. An answer that begins with
//! neither yes nor no counts as no code, and so does a sample that is too long to ask about.

use crate::agents::{Agent, Call, Local, LocalSizes, Outcome, Refusal, RefusalKind, Sampling};
use crate::base::error::usage;
use crate::base::fs::check_writable;
use crate::base::progress::Progress;
use crate::base::{human, interrupt};
use crate::cli::agent::AskedArgs;
use crate::cli::device::DeviceArgs;
use crate::cli::print;
use crate::data::code_answers::{AnswerFile, CodeAnswers};
use crate::data::input::{InputFile, resolve};
use crate::data::prompt::CodePrompt;
use crate::data::sample::Sample;
use crate::data::tokenized::Line;
use crate::tokenizer::Message;
use anyhow::{Result, anyhow};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    asked: AskedArgs,
    /// Read conversations with ids from here: a .jsonl or .parquet file, a directory of them, or the name
    /// of a data set on the Hub
    #[arg(long, value_name = "PLACE")]
    data: String,
    /// Write the answers to this file and keep those that are in it (JSON Lines)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Read the question from this file, a template over `messages` [default: data/prompts/is_code.txt]
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Ask only questions of at most this many tokens, which the model's positions may limit further
    /// [default: 2048]
    #[arg(long, value_name = "N")]
    max_prompt_tokens: Option<usize>,
    /// End an answer after this many tokens
    #[arg(long, value_name = "N", default_value_t = 4)]
    max_new_tokens: usize,
    /// Answer this many questions at the same time [default: 16, or what --api-config says]
    #[arg(long, value_name = "N")]
    max_sequences: Option<usize>,
    /// End an answer with this token too (may be given several times)
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Asks, stores the answers, and prints how many there are of each kind.
pub fn run(args: Args) -> Result<()> {
    interrupt::install()?;
    check_writable(&args.out, &[])?;
    let prompt = CodePrompt::open(args.prompt.as_deref())?;
    let files = resolve(&args.data)?;
    let agent = args.agent()?;
    let (file, before) = AnswerFile::open(&args.out)?;
    let counts = Counts::default();
    let mut asker = Asker { agent, prompt, file, counts };
    ask_all(&files, &before, &mut asker)?;
    let account = asker.agent.account();
    // A model of this machine costs nothing that is worth a line.
    let account = account.cost.is_some().then(|| format!("{account}\n"));
    print(asker.counts.text() + &account.unwrap_or_default())
}

impl Args {
    /// Opens the model that is asked.
    fn agent(&self) -> Result<Box<dyn Agent>> {
        let sampling = Sampling { temperature: 0.0, max_tokens: self.max_new_tokens as u64 };
        let Some(model) = self.asked.model()? else {
            self.device.expect_none()?;
            if self.max_prompt_tokens.is_some() || !self.stop_id.is_empty() {
                return Err(usage(
                    "--max-prompt-tokens and --stop-id are for a model of this machine: an endpoint's tokens are \
                     not known here",
                ));
            }
            return self.asked.open(sampling, self.max_sequences, Some(&self.out));
        };
        self.device.check(1)?;
        let sizes = LocalSizes {
            max_sequences: self.max_sequences.unwrap_or(16),
            max_prompt_tokens: self.max_prompt_tokens.unwrap_or(2048),
        };
        let name = model.model.display().to_string();
        let model = self.device.open(model, 1)?;
        Ok(Box::new(Local::new(model, name, sampling, sizes, &self.stop_id)?))
    }
}

/// Asks about every sample of `files` that has no answer `before`.
fn ask_all(files: &[InputFile], before: &CodeAnswers, asker: &mut Asker) -> Result<()> {
    let total = files.iter().map(InputFile::count).sum::<Result<_>>()?;
    let progress = Progress::new("classify", total, "samples");
    for file in files {
        let mut number = 0;
        file.for_each_chunk(|lines| {
            let mut unanswered = Vec::new();
            for line in &lines {
                number += 1;
                let (id, sample) = identified(line).ok_or_else(|| {
                    usage(format!(
                        "{}: sample {number}: it has no `id`, by which answers are stored",
                        file.path().display()
                    ))
                })?;
                if before.has(id) {
                    asker.counts.known += 1;
                } else {
                    unanswered.push((id, sample));
                }
            }
            progress.inc((lines.len() - unanswered.len()) as u64);
            asker.ask(&unanswered, &progress)
        })?;
    }
    progress.finish();
    Ok(())
}

/// Returns a conversation with its id.
fn identified(line: &Line) -> Option<(&str, &Sample)> {
    let Line::Sample(sample) = line else { return None };
    Some((sample.id.as_deref()?, sample))
}

/// A model with the question that it is asked.
struct Asker {
    agent: Box<dyn Agent>,
    prompt: CodePrompt,
    file: AnswerFile,
    counts: Counts,
}

impl Asker {
    /// Asks about each sample and stores the answers as they come.
    fn ask(&mut self, samples: &[(&str, &Sample)], progress: &Progress) -> Result<()> {
        let call = |&(id, sample): &(&str, &Sample)| {
            let question = Message::new("user", self.prompt.render(sample)?);
            Ok(Call { id: id.to_owned(), messages: Arc::from([question]), sample: 0, seed: 0 })
        };
        let calls: Vec<Call> = samples.iter().map(call).collect::<Result<_>>()?;
        let Self { agent, file, counts, .. } = self;
        agent.ask(&calls, progress, &mut |index, outcome| {
            let (id, _) = samples[index];
            progress.inc(1);
            match outcome {
                Outcome::Answered(answer) => {
                    let is_code = is_yes(&answer.content);
                    counts.add(is_code);
                    file.add(id, is_code.unwrap_or(false), answer.content.trim())
                }
                Outcome::Refused(Refusal { kind: RefusalKind::TooLong, .. }) => {
                    counts.too_long += 1;
                    file.add(id, false, "")
                }
                Outcome::Refused(Refusal { kind: RefusalKind::Rejected, message }) => {
                    Err(usage(format!("sample {id}: the call is refused: {message}")))
                }
                Outcome::Refused(Refusal { kind: RefusalKind::GaveUp, message }) => {
                    Err(anyhow!("sample {id}: {message}"))
                }
            }
        })
    }
}

/// Returns whether an answer begins with yes; `None` if it begins with neither yes nor no.
fn is_yes(answer: &str) -> Option<bool> {
    let mut words = answer.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    match words.next()?.to_lowercase().as_str() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// The numbers of samples by answer.
#[derive(Default)]
struct Counts {
    known: u64,
    code: u64,
    other: u64,
    unclear: u64,
    too_long: u64,
}

impl Counts {
    fn add(&mut self, is_code: Option<bool>) {
        match is_code {
            Some(true) => self.code += 1,
            Some(false) => self.other += 1,
            None => self.unclear += 1,
        }
    }

    fn text(&self) -> String {
        let Self { known, code, other, unclear, too_long } = self;
        let kinds = [
            ("answered before", known),
            ("code", code),
            ("no code", other),
            ("neither yes nor no, taken as no code", unclear),
            ("too long to ask about, taken as no code", too_long),
        ];
        kinds.map(|(kind, &count)| format!("{:>9}  {kind}\n", human::count(count))).concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_first_word() {
        for (answer, expected) in [
            ("Yes", Some(true)),
            (" **no**, it is", Some(false)),
            ("YES.", Some(true)),
            ("not at all", None),
            ("Perhaps yes", None),
            ("", None),
        ] {
            assert_eq!(is_yes(answer), expected, "{answer:?}");
        }
    }
}
