//! Fine-tunes a model on conversations for twenty steps and saves it:
//! `cargo run --release --example fine_tune -- data/demo/base data/demo/sft.jsonl runs/fine-tuned`.

use anyhow::{Context, Result};
use codeseq::checkpoint::LanguageModel;
use codeseq::data::loader::Cursor;
use codeseq::data::settings::DataConfig;
use codeseq::objective::sft::NegativeLogLikelihood;
use codeseq::optim::{AdamWConfig, Schedule};
use codeseq::trainer::{Execution, MicroBatch, Trainer};
use std::io::Write;
use std::path::Path;

const STEPS: u64 = 20;
const ROW_TOKENS: usize = 1024;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, samples, out] = &args[..] else {
        anyhow::bail!("usage: fine_tune MODEL SAMPLES OUT");
    };
    let model = LanguageModel::open(Path::new(model))?;
    let data =
        DataConfig { files: vec![samples.into()], max_length: ROW_TOKENS, ..DataConfig::default() };
    let mut rows = data.open(&model.tokenizer)?.loader(ROW_TOKENS, 0, Cursor::default())?;
    let optim = AdamWConfig { lr: 1e-3, ..AdamWConfig::default() };
    let mut trainer = Trainer::new(model, optim, Schedule::default(), STEPS, Execution::default())?;
    for step in 1..=STEPS {
        let row = rows.next_batch();
        let num_targets = row.targets.len() as f64;
        let objective = NegativeLogLikelihood::new(0.0, 1);
        trainer.accumulate(&[MicroBatch::join(&[row])], 1.0, &objective)?;
        let loss = objective.into_losses().loss / num_targets;
        trainer.update(num_targets, loss)?;
        trainer.end_step();
        writeln!(std::io::stdout(), "step {step}: loss {loss:.3}")?;
    }
    trainer.save(Path::new(out), ()).context("saving the model")
}
