//! `train serve`: a model behind OpenAI's protocol.

use super::device::RankArgs;
use super::judge::JudgeArgs;
use super::model::ModelArgs;
use crate::base::error::usage;
use crate::base::fs::read_text;
use crate::base::terminal;
use crate::checkpoint::warn_of_run_on;
use crate::data::rows;
use crate::engine::{EngineConfig, OpenModel};
use crate::sandbox::Judge;
use crate::serve::{ApiKeys, Limits, Playground, Server, Settings};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// This variable holds API keys where no file is given.
const KEY_VARIABLE: &str = "CODESEQ_API_KEY";

/// Arguments of `train serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// What requests call the model [default: what --model says]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Longest prompt with its answer, in tokens [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Answers that each rank samples at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_sequences: u32,
    /// Answers that are sampled or wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_queued_requests: usize,
    /// Tokens of prompts that wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    max_queued_tokens: usize,
    /// Let in only who has one of the keys in this file, one a line [default: those in CODESEQ_API_KEY,
    /// if it is set]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Let pages of this origin call the server from a browser (may be given several times)
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Let work that runs go on for so long after SIGTERM or Ctrl-C
    #[arg(long, value_name = "SECS", default_value_t = 30)]
    drain_secs: u64,
    /// Problems that the page offers (JSON Lines)
    #[arg(long, value_name = "FILE")]
    problems: Option<PathBuf>,
    #[command(flatten)]
    ranks: RankArgs,
    /// How the page's judge runs programs
    #[command(flatten)]
    judge: JudgeArgs,
}

/// Serves until it is told to stop.
pub fn run(args: Args) -> Result<()> {
    args.ranks.check()?;
    let keys = keys(args.api_key_file.as_deref())?;
    let origins = args.allow_origin.iter().map(|origin| {
        let wrong =
            || usage(format!("--allow-origin {origin:?}: expected e.g. https://example.org"));
        origin.parse().map_err(|_| wrong())
    });
    let origins = origins.collect::<Result<_>>()?;
    let problems = args.problems.as_deref().map(rows::read).transpose()?.unwrap_or_default();
    let listener = Server::bind(&args.host, args.port)?;
    let mut model = args.ranks.open(args.model.place())?;
    warn_of_run_on(model.decoder.config(), &model.tokenizer, &[]);
    let engine = engine_config(&args, &mut model)?;
    let judge = Judge::start(args.judge.options());
    let judge = judge.map_err(|e| tracing::warn!("the page judges nothing: {e:#}")).ok();
    let name = args.name.unwrap_or_else(|| args.model.place().model.display().to_string());
    let settings = Settings {
        name: name.clone(),
        engine,
        limits: Limits {
            max_queued_requests: args.max_queued_requests,
            max_queued_tokens: args.max_queued_tokens,
        },
        keys,
        origins,
        playground: Playground { problems, judge },
        drain_time: Duration::from_secs(args.drain_secs),
    };
    let server = Server::start(model, listener, settings)?;
    terminal::line(format_args!("serving {name} at http://{}", server.address()));
    server.run()
}

/// Reads the keys of a file, or of the environment.
fn keys(file: Option<&Path>) -> Result<ApiKeys> {
    match (file, std::env::var(KEY_VARIABLE)) {
        (Some(file), _) => ApiKeys::parse(&read_text(file)?, &file.display().to_string()),
        (None, Ok(keys)) => ApiKeys::parse(&keys, KEY_VARIABLE),
        (None, Err(std::env::VarError::NotPresent)) => Ok(ApiKeys::default()),
        (None, Err(error)) => Err(usage(format!("{KEY_VARIABLE}: {error}"))),
    }
}

fn engine_config(args: &Args, model: &mut OpenModel) -> Result<EngineConfig> {
    let positions = model.decoder.config().max_position_embeddings;
    let max_length = args.max_length.map_or(positions, |length| length as usize);
    model.decoder.config().check_length(max_length)?;
    model.generator().fit(EngineConfig::roomy(args.max_sequences as usize, max_length))
}
