//! `train data inspect`: shows samples token by token, and which tokens have loss.

use crate::base::error::usage;
use crate::base::terminal;
use crate::checkpoint::ModelPlace;
use crate::cli::print;
use crate::data::input;
use crate::tokenizer::{Tokenized, Tokenizer};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read samples from here, conversations (`messages`) or `input_ids` with `labels`: a .jsonl or
    /// .parquet file, a directory of them, or the name of a data set on the Hub
    #[arg(long, value_name = "PLACE")]
    data: String,
    /// Use the tokenizer in this directory (it may be a model's) or GGUF file, or that of the model of this
    /// name on the Hub
    #[arg(long, value_name = "MODEL")]
    tokenizer: PathBuf,
    /// Show this many samples
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3)]
    samples: usize,
}

pub fn run(args: Args) -> Result<()> {
    let tokenizer = ModelPlace::from(&args.tokenizer).open_tokenizer()?;
    let is_coloured = terminal::is_coloured(&std::io::stdout());
    let style = if is_coloured { Style::Colours } else { Style::Brackets };
    let mut totals = Totals::default();
    input::for_each(&args.data, &tokenizer, |sample| {
        totals.add(&sample);
        if totals.samples > args.samples {
            return Ok(());
        }
        let (number, length) = (totals.samples, sample.input_ids.len());
        let legend = if number == 1 { style.legend() + "\n\n" } else { String::new() };
        let text = render(&sample, &tokenizer, style)?;
        print(format_args!(
            "{legend}sample {number}: {length} tokens, {} with loss\n{text}\n\n",
            sample.learnt()
        ))
    })?;
    if totals.samples == 0 {
        return Err(usage(format!("{}: no samples", args.data)));
    }
    print(totals.text())
}

/// Counts over all samples.
#[derive(Default)]
struct Totals {
    samples: usize,
    tokens: usize,
    learnt: usize,
    longest: usize,
}

impl Totals {
    fn add(&mut self, sample: &Tokenized) {
        let length = sample.input_ids.len();
        self.samples += 1;
        self.tokens += length;
        self.learnt += sample.learnt();
        self.longest = self.longest.max(length);
    }

    fn text(&self) -> String {
        let Self { samples, tokens, learnt, longest } = self;
        let mean = |sum: &usize| *sum as f64 / *samples as f64;
        format!(
            "{samples} samples, {tokens} tokens (mean {:.1}, longest {longest}), {learnt} with loss \
             ({:.1} %, mean {:.1})\n",
            mean(tokens),
            100.0 * *learnt as f64 / *tokens as f64,
            mean(learnt),
        )
    }
}

/// How tokens with loss are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// They have a coloured background, in two shades by turns, so that neighbours can be told apart.
    Colours,
    /// They are in brackets, without colours.
    Brackets,
}

const RESET: &str = "\x1b[0m";

impl Style {
    fn legend(self) -> String {
        let [with, without] =
            [true, false].map(|learn| self.token(0, if learn { "loss" } else { "no loss" }, learn));
        format!("{with} {without}")
    }

    fn token(self, index: usize, text: &str, learn: bool) -> String {
        match (self, learn) {
            (Self::Colours, true) => {
                format!("\x1b[30;48;5;{}m{text}{RESET}", [114, 150][index % 2])
            }
            (Self::Colours, false) => format!("\x1b[48;5;{}m{text}{RESET}", [236, 239][index % 2]),
            (Self::Brackets, true) => format!("[{text}]"),
            (Self::Brackets, false) => format!("({text})"),
        }
    }
}

fn render(sample: &Tokenized, tokenizer: &Tokenizer, style: Style) -> Result<String> {
    let mut out = String::new();
    for (i, (&id, &learn)) in sample.input_ids.iter().zip(&sample.loss_mask).enumerate() {
        let text = visible(&tokenizer.decode_with_special_tokens(&[id])?);
        out.push_str(&style.token(i, &text, learn));
        // A line breaks after the token that holds the line break, outside its colour.
        out.push_str(&"\n".repeat(text.matches('⏎').count()));
    }
    Ok(out)
}

/// Returns the text with line breaks and other control characters made visible and harmless.
fn visible(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\n' => out.push('⏎'),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sample::Message;
    use crate::tokenizer::test_support::small_tokenizer;

    #[test]
    fn tokens_with_loss_stand_in_square_brackets_or_in_green() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = small_tokenizer(dir.path());
        let dialogue = [Message::new("user", "7\n"), Message::new("assistant", "4\x1b2")];
        let sample = tokenizer.encode_sample(&dialogue).unwrap();
        let plain = render(&sample, &tokenizer, Style::Brackets).unwrap();
        assert_eq!(
            plain,
            "(<|user|>)(7)(⏎)\n(<|im_end|>)(<|assistant|>)[4][\\u{1b}][2][<|im_end|>]"
        );
        let coloured = render(&sample, &tokenizer, Style::Colours).unwrap();
        assert!(coloured.contains("\x1b[30;48;5;150m4\x1b[0m"), "{coloured:?}");
    }
}
