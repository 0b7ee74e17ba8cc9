//! `--api` and what belongs to it: the arguments of every command that may ask a model that others serve.

use crate::agents::{Account, Agent, Api, Endpoint, Recorded, Sampling};
use crate::base::error::usage;
use crate::checkpoint::ModelPlace;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Whom a command asks: a model of this machine, or one that others serve.
#[derive(Debug, clap::Args)]
pub struct AskedArgs {
    /// A model directory in Hugging Face layout, a GGUF file, or the name of a model on the Hub
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The directory of a tokenizer that takes the place of a GGUF file's own
    #[arg(long, value_name = "DIR", requires = "model")]
    tokenizer: Option<PathBuf>,
    /// Ask a model behind this base URL, by OpenAI's chat protocol, such as http://localhost:8000/v1
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// The model's name there
    #[arg(long, value_name = "NAME")]
    api_model: Option<String>,
    /// The environment variable that holds the key
    #[arg(long, value_name = "VAR")]
    api_key_env: Option<String>,
    /// Prices, budget, limits, and what the endpoint takes (TOML; docs/agents.md)
    #[arg(long, value_name = "FILE")]
    api_config: Option<PathBuf>,
    /// Keep all calls here; what is here already is not asked again [default: beside --out]
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Take all answers from what --record kept, and ask nothing
    #[arg(long, value_name = "DIR", conflicts_with = "record")]
    replay: Option<PathBuf>,
}

impl AskedArgs {
    /// Returns the model of this machine that is asked, or none where an endpoint is. Refuses both and neither, and
    /// what belongs to an endpoint without one.
    pub fn model(&self) -> Result<Option<ModelPlace<'_>>> {
        let is_endpoint = self.api.is_some() || self.api_config.is_some();
        let others = [
            ("--api-model", self.api_model.is_some()),
            ("--api-key-env", self.api_key_env.is_some()),
            ("--record", self.record.is_some()),
            ("--replay", self.replay.is_some()),
        ];
        if let Some((name, _)) = others.iter().find(|(_, is_there)| *is_there && !is_endpoint) {
            return Err(usage(format!("{name} belongs to --api URL or --api-config FILE")));
        }
        match &self.model {
            Some(_) if is_endpoint => {
                Err(usage("--model and --api are two models: give one of them"))
            }
            None if !is_endpoint => {
                Err(usage("whom to ask? Give --model MODEL, or --api URL with --api-model NAME"))
            }
            model => Ok(model
                .as_deref()
                .map(|model| ModelPlace { model, tokenizer: self.tokenizer.as_deref() })),
        }
    }

    /// Opens the endpoint, which is asked at most `concurrency` times at once where that is given. What it answers is
    /// kept beside the result `out`, or where the user says.
    pub fn open(
        &self,
        sampling: Sampling,
        concurrency: Option<usize>,
        out: Option<&Path>,
    ) -> Result<Box<dyn Agent>> {
        let (api, model) = (self.api.as_deref(), self.api_model.as_deref());
        let mut endpoint =
            Endpoint::load(self.api_config.as_deref(), api, model, self.api_key_env.as_deref())?;
        endpoint.limits.concurrency = concurrency.unwrap_or(endpoint.limits.concurrency);
        match (&self.replay, &self.record) {
            (Some(dir), _) => Ok(Box::new(Recorded::open(endpoint, sampling, dir)?)),
            (None, record) => {
                let beside = out.filter(|out| !out.exists() || out.is_file()).map(beside);
                let dir = record.clone().or(beside).ok_or_else(|| {
                    usage("what an endpoint answers has to be kept: give --record DIR, or a file as --out")
                })?;
                Ok(Box::new(Api::open(endpoint, sampling, &dir)?))
            }
        }
    }
}

/// What is said of a model that others serve, below a result.
pub(crate) fn answered_by(account: Option<&Account>) -> String {
    account.map_or_else(String::new, |account| format!("{account}\n"))
}

/// Where the calls of the result `out` lie: those of `score.json` in `score.calls`.
fn beside(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let stem = [".json", ".jsonl"].iter().find_map(|end| name.strip_suffix(end));
    out.with_file_name(format!("{}.calls", stem.unwrap_or(&name)))
}

/// A number as the user wrote it, which f32 rounds.
pub fn exact(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_sent_as_it_was_written() {
        assert_eq!(exact(0.7).to_string(), "0.7");
    }

    #[test]
    fn calls_lie_beside_their_result() {
        assert_eq!(beside(Path::new("a/score.json")), Path::new("a/score.calls"));
        assert_eq!(beside(Path::new("kept.jsonl")), Path::new("kept.calls"));
        assert_eq!(beside(Path::new("x")), Path::new("x.calls"));
    }
}
