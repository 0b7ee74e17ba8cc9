//! The plan of a run on the CPU against what the run takes of the machine.
//!
//! Alone in its file, because the measure is the whole process. It trains a model of 61M parameters
//! for two steps, which takes a minute or two, so it runs only when asked for:
//! `cargo test --test plan -- --ignored --nocapture`; `PLAN_TRAIN="ranks = 2; recompute = 'layer'"`
//! adds keys to its `[train]`.

#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]

use codeseq::base::memory;
use codeseq::checkpoint::LanguageModel;
use codeseq::data::pack::Batch;
use codeseq::model::{Decoder, ModelConfig, layout};
use codeseq::objective::sft::NegativeLogLikelihood;
use codeseq::plan::Plan;
use codeseq::tokenizer::bpe::{self, BpeOptions};
use codeseq::tokenizer::{Message, Tokenized, Tokenizer};
use codeseq::train::sft;
use codeseq::trainer::MicroBatch;
use codeseq::trainer::Trainer;
use serde_json::json;
use std::path::Path;

const SEQ_LEN: usize = 1024;

fn shape() -> String {
    json!({
        "model_type": "llama", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 14, "num_attention_heads": 8, "num_key_value_heads": 4,
    })
    .to_string()
}

fn config(dir: &Path, more: &str) -> sft::Config {
    let dir = dir.display();
    let text = format!(
        "model = {{ init = '{dir}/model.json', tokenizer = '{dir}' }}
        data = {{ files = ['{dir}/unread.jsonl'], max_length = {SEQ_LEN} }}
        optim = {{ lr = 1e-4 }}
        schedule = {{}}
        [train]
        total_steps = 2
        seq_len = {SEQ_LEN}
        gradient_accumulation = 1
        {more}"
    );
    toml::from_str(&text).unwrap()
}

fn tokenizer(dir: &Path) -> Tokenizer {
    let samples = vec![vec![Message::new("user", "one two"), Message::new("assistant", "three")]];
    let options = BpeOptions { vocab_size: 280, max_token_length: 16 };
    bpe::train(&samples, options, &dir.join("tokenizer")).unwrap();
    Tokenizer::load(&dir.join("tokenizer")).unwrap()
}

#[test]
#[ignore = "takes a minute or two"]
fn the_plan_is_within_5_percent_of_the_memory_that_training_takes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.json"), shape()).unwrap();
    let more = std::env::var("PLAN_TRAIN").unwrap_or_default().replace(';', "\n");
    let config = config(dir.path(), &more);
    let plan = Plan::new(&config.workload().unwrap());
    let planned = plan.total_bytes() as f64;
    let tokenizer = tokenizer(dir.path());
    assert!(planned > f64::from(1 << 30), "the plan is {planned}");

    let before = memory::resident().unwrap() as f64;
    let shape = ModelConfig::from_json(&shape()).unwrap();
    let params = layout::init(&shape, 1);
    let model = LanguageModel { params, decoder: Decoder::new(shape), tokenizer };
    let train = &config.train;
    let mut trainer =
        Trainer::new(model, config.optim, config.schedule, 2, train.execution()).unwrap();
    for step in 0..2 {
        let row = |i: usize| {
            let sample = Tokenized {
                input_ids: (0..SEQ_LEN).map(|at| ((at * 7 + step + i) % 16384) as u32).collect(),
                loss_mask: vec![true; SEQ_LEN],
            };
            Batch::new(&[sample], &[0])
        };
        let rows: Vec<Batch> = (0..train.rows_per_step()).map(row).collect();
        let batches: Vec<_> = rows.chunks(train.micro_batch_size).map(MicroBatch::join).collect();
        let objective = NegativeLogLikelihood::new(0.0, batches.len());
        trainer.accumulate(&batches, 1.0, &objective).unwrap();
        trainer.update((SEQ_LEN * rows.len()) as f64, 1.0).unwrap();
    }
    let measured = memory::peak_resident().unwrap() as f64 - before;
    for (label, value) in plan.lines() {
        println!("{label:<40}{value}");
    }
    let off = (planned / measured - 1.0) * 100.0;
    println!("planned {:.4} GB, measured {:.4} GB: {off:+.2} %", planned / 1e9, measured / 1e9);
    assert!(off.abs() < 5.0);
}
