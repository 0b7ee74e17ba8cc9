//! `train data classify` asks a model about every sample whether it is code, and stores the answers for
//! `code_answers` of a source. The paper leaves code out of Tülu 3 in this way.
//!
//! An answer is written when it comes, so a run that was stopped continues where it was; a sample that has
//! an answer is not asked about again. The model answers at temperature 0. An answer that begins with
//! neither yes nor no counts as no code, and so does a sample that is too long to ask about.

use crate::base::error::usage;
use crate::base::fs::check_writable;
use crate::base::progress::Progress;
use crate::base::{human, interrupt};
use crate::checkpoint::warn_of_run_on;
use crate::cli::device::DeviceArgs;
use crate::cli::model::ModelArgs;
use crate::cli::print;
use crate::data::code_answers::{AnswerFile, CodeAnswers};
use crate::data::input::{InputFile, resolve};
use crate::data::prompt::CodePrompt;
use crate::data::sample::Sample;
use crate::data::tokenized::Line;
use crate::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams};
use crate::model::ModelConfig;
use crate::tokenizer::{Message, Tokenizer};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
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
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_prompt_tokens: usize,
    /// End an answer after this many tokens
    #[arg(long, value_name = "N", default_value_t = 4)]
    max_new_tokens: usize,
    /// Answer this many questions at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    max_sequences: usize,
    /// End an answer with this token too (may be given several times)
    #[arg(long, value_name = "ID")]
    stop_id: Vec<u32>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Asks, stores the answers, and prints how many there are of each kind.
pub fn run(args: Args) -> Result<()> {
    args.device.check(1)?;
    interrupt::install()?;
    check_writable(&args.out, &[])?;
    let prompt = CodePrompt::open(args.prompt.as_deref())?;
    let files = resolve(&args.data)?;
    let mut model = args.device.open(args.model.place(), 1)?;
    model.tokenizer.check_ids("--stop-id", &args.stop_id)?;
    warn_of_run_on(model.decoder.config(), &model.tokenizer, &args.stop_id);
    let config = engine_config(&args, model.decoder.config())?;
    // The question must leave room for an answer.
    let positions = model.decoder.config().max_position_embeddings;
    let max_tokens = args.max_prompt_tokens.min(positions - 1);
    let sampling = SamplingParams {
        temperature: 0.0,
        max_new_tokens: args.max_new_tokens,
        stop_ids: [model.stop_ids(), args.stop_id.clone()].concat(),
        vocab_size: model.tokenizer.vocab_size(),
        ..SamplingParams::default()
    };
    let advice = "lower --max-sequences or --max-prompt-tokens";
    let (engine, tokenizer) = model.engine(config, advice)?;
    let (file, before) = AnswerFile::open(&args.out)?;
    let counts = Counts::default();
    let mut asker = Asker { engine, tokenizer, prompt, sampling, max_tokens, file, counts };
    ask_all(&files, &before, &mut asker)?;
    print(asker.counts.text())
}

/// Asks about every sample of `files` that has no answer in `before`.
fn ask_all(files: &[InputFile], before: &CodeAnswers, asker: &mut Asker<'_>) -> Result<()> {
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

fn engine_config(args: &Args, model: &ModelConfig) -> Result<EngineConfig> {
    if args.max_prompt_tokens == 0 || args.max_new_tokens == 0 || args.max_sequences == 0 {
        return Err(usage(
            "--max-prompt-tokens, --max-new-tokens and --max-sequences must be at least 1",
        ));
    }
    let limit = model.max_position_embeddings;
    let longest = args.max_prompt_tokens.saturating_add(args.max_new_tokens).min(limit);
    Ok(EngineConfig::roomy(args.max_sequences, longest))
}

/// A model, with the question that it is asked.
struct Asker<'m> {
    engine: Engine<'m>,
    tokenizer: &'m Tokenizer,
    prompt: CodePrompt,
    sampling: SamplingParams,
    max_tokens: usize,
    file: AnswerFile,
    counts: Counts,
}

impl Asker<'_> {
    /// Asks about each sample, and stores the answers as they come.
    fn ask(&mut self, samples: &[(&str, &Sample)], progress: &Progress) -> Result<()> {
        let (mut requests, mut asked) = (Vec::new(), Vec::new());
        for &(id, sample) in samples {
            let question = [Message::new("user", self.prompt.render(sample)?)];
            let prompt = self.tokenizer.encode_prompt(&question)?;
            if prompt.len() > self.max_tokens {
                self.counts.too_long += 1;
                self.file.add(id, false, "")?;
                progress.inc(1);
            } else {
                let sampling = self.sampling.clone();
                requests.push(Request { prompt, sampling, num_samples: 1, key: 0 });
                asked.push(id);
            }
        }
        let Self { engine, tokenizer, file, counts, .. } = self;
        let mut stored = Ok(());
        let mut store = |RequestId(request): RequestId, _sample: usize, rollout: Rollout| {
            let answer = tokenizer.decode(&rollout.tokens);
            let result = answer.and_then(|answer| {
                let is_code = is_yes(&answer);
                counts.add(is_code);
                file.add(asked[request], is_code.unwrap_or(false), answer.trim())
            });
            if stored.is_ok() {
                stored = result;
            }
            progress.inc(1);
        };
        engine.generate(&requests, &mut store)?;
        stored
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
