//! Weights in their stored number format compute the bits of the same weights in f32.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use codeseq::base::progress::Progress;
use codeseq::engine::{Engine, EngineConfig, Request, RequestId, Rollout, SamplingParams, Scorer};
use codeseq::model::layout::init;
use codeseq::model::{Decoder, ModelConfig, Packed, Target, TensorSpec, Workspace};
use codeseq::ops::element::{Dtype, Elements};
use half::{bf16, f16};
use std::collections::HashMap;

const VOCAB: usize = 70;

fn decoder(kind: &str, tied: bool) -> Decoder {
    let text = format!(
        r#"{{"model_type": "{kind}", "vocab_size": {VOCAB}, "hidden_size": 40,
        "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 12,
        "num_key_value_heads": 2, "initializer_range": 0.2, "tie_word_embeddings": {tied}}}"#
    );
    Decoder::new(ModelConfig::from_json(&text).unwrap())
}

/// A tensor's rows in their file's order, narrowed.
fn stored(spec: &TensorSpec, dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let row_len = spec.row_len();
    let mut in_file = vec![0.0; values.len()];
    for (row, values) in values.chunks(row_len).enumerate() {
        in_file[spec.order.file_row(row) * row_len..][..row_len].copy_from_slice(values);
    }
    in_file
        .iter()
        .flat_map(|&x| match dtype {
            Dtype::F32 => x.to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        })
        .collect()
}

/// A model's parameters as a file holds them and, exactly the same, in f32.
struct Stored {
    decoder: Decoder,
    tensors: HashMap<String, (Dtype, Vec<u8>)>,
    wide: Vec<f32>,
}

impl Stored {
    /// The formats of `dtypes` take turns.
    fn new(decoder: Decoder, dtypes: &[Dtype]) -> Self {
        let mut wide = init(decoder.config(), 3);
        let mut tensors = HashMap::new();
        for (i, spec) in decoder.layout().tensors.iter().enumerate() {
            let dtype = dtypes[i % dtypes.len()];
            let values = &mut wide[spec.range.clone()];
            // Norms of 1 and biases of 0 would hide an exchange.
            if spec.shape.len() == 1 {
                values.iter_mut().zip(0..).for_each(|(v, j)| *v += (j * i) as f32 % 7.0 / 16.0);
            }
            tensors.insert(spec.name.clone(), (dtype, stored(spec, dtype, values)));
            values.iter_mut().for_each(|x| {
                *x = match dtype {
                    Dtype::F32 => *x,
                    Dtype::Bf16 => bf16::from_f32(*x).to_f32(),
                    Dtype::F16 => f16::from_f32(*x).to_f32(),
                }
            });
        }
        Self { decoder, tensors, wide }
    }

    fn weights(&self) -> codeseq::model::Weights<'static> {
        let tensor = |spec: &TensorSpec| {
            let (dtype, bytes) = &self.tensors[&spec.name];
            Elements { dtype: *dtype, bytes }
        };
        self.decoder.pack_stored(|spec| tensor(spec).into(), |_| {})
    }

    /// Log-probabilities as training computes them.
    fn expected(&self, tokens: &[u32], temperature: f32) -> Vec<f32> {
        let targets: Vec<Target> =
            (1..tokens.len()).map(|i| Target { row: i - 1, token: tokens[i] }).collect();
        let packed = Packed::from_sequences([tokens]);
        let ws = &mut Workspace::new();
        let scores = self.decoder.score(&self.wide, &packed, &targets, temperature, ws);
        scores.iter().map(|score| score.logp).collect()
    }
}

fn tokens(len: usize) -> Vec<u32> {
    (0..len).map(|i| (i * 31 % VOCAB) as u32).collect()
}

#[test]
fn scores_have_the_bits_of_training_in_every_format_and_family() {
    let all = [Dtype::Bf16, Dtype::F32, Dtype::F16];
    for (kind, tied) in [("llama", true), ("qwen2", false), ("qwen3", false), ("internlm2", false)]
    {
        for dtypes in [&all[..1], &all[1..2], &all[2..], &all[..]] {
            let model = Stored::new(decoder(kind, tied), dtypes);
            let weights = model.weights();
            let sequences: Vec<Vec<u32>> = [0, 130, 1, 33, 2].map(tokens).to_vec();
            let scores = Scorer::new(&model.decoder, &weights)
                .score(&sequences, 0.8, &Progress::hidden())
                .unwrap();
            for (tokens, scores) in sequences.iter().zip(&scores) {
                if tokens.len() < 2 {
                    assert!(scores.is_empty());
                } else {
                    assert_eq!(*scores, model.expected(tokens, 0.8), "{kind} {dtypes:?}");
                }
            }
        }
    }
}

#[test]
fn generated_log_probabilities_are_those_of_training_and_padding_is_never_drawn() {
    let model = Stored::new(decoder("qwen2", true), &[Dtype::Bf16]);
    let config = EngineConfig::roomy(8, 64);
    // Half of the rows are padding.
    let vocab_size = VOCAB / 2;
    let sampling = SamplingParams {
        temperature: 1.5,
        max_new_tokens: 40,
        vocab_size,
        ..SamplingParams::default()
    };
    let prompt = tokens(9);
    let request = Request { prompt: prompt.clone(), sampling, num_samples: 8, key: 5 };
    let mut count = 0;
    Engine::with_weights(&model.decoder, model.weights(), config)
        .generate(&[request], &mut |_: RequestId, _: usize, rollout: Rollout| {
            assert!(rollout.tokens.iter().all(|&token| (token as usize) < vocab_size));
            let whole = [prompt.clone(), rollout.tokens].concat();
            let expected = model.expected(&whole, 1.5);
            assert_eq!(rollout.logprobs, expected[prompt.len() - 1..]);
            count += 1;
        })
        .unwrap();
    assert_eq!(count, 8);
}
