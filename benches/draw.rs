//! The time of a draw from the logits of a real vocabulary (152,064, Qwen2.5's), by kind of truncation.
//!
//!     cargo bench --bench draw
//!
//! Prints the least and the median of 60 draws on one thread.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use codeseq::base::rng;
use codeseq::ops::sample::{Sampling, sample};
use std::time::Instant;

const VOCABULARY: u64 = 152_064;
const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

fn main() {
    let logit = |i| 24.0 * rng::uniform(1, i).powi(3) - 12.0;
    let logits: Vec<f32> = (0..VOCABULARY).map(logit).collect();
    for (name, sampling) in [
        ("no truncation", PLAIN),
        ("top-k 50", Sampling { top_k: 50, ..PLAIN }),
        ("top-p 0.95", Sampling { top_p: 0.95, ..PLAIN }),
        ("min-p 0.05", Sampling { min_p: 0.05, ..PLAIN }),
        ("Qwen2.5's own", Sampling { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0.0 }),
    ] {
        let mut millis: Vec<f64> = (0..60)
            .map(|i| {
                let start = Instant::now();
                std::hint::black_box(sample(&logits, logits.len(), sampling, rng::uniform(2, i)));
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        millis.sort_by(f64::total_cmp);
        println!("{name}: least {:.2} ms, median {:.2} ms", millis[0], millis[millis.len() / 2]);
    }
}
