//! `train convert`: writes a model in the format of llama.cpp.

use super::model::ModelArgs;
use super::print;
use crate::base::error::usage;
use crate::base::fs::check_writable;
use crate::base::human;
use crate::checkpoint::{GgufFormat, StoredModel, write_gguf};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Arguments of `train convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The new file, whose name ends in .gguf
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Numbers of the matrices; norms and biases stay f32
    #[arg(long, value_name = "FORMAT", value_enum)]
    quantize: GgufFormat,
}

/// Writes the file and says how long it is.
pub fn run(args: Args) -> Result<()> {
    if args.out.extension().is_none_or(|extension| extension != "gguf") {
        return Err(usage(format!("--out {}: the name has to end in .gguf", args.out.display())));
    }
    check_writable(&args.out, &[args.model.place().model])?;
    let model = StoredModel::open(args.model.place())?;
    write_gguf(&model, args.quantize, &args.out)?;
    let size = args.out.metadata().with_context(|| args.out.display().to_string())?.len();
    print(format_args!("{}: {}\n", args.out.display(), human::bytes(size)))
}
