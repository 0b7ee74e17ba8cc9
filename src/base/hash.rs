//! Hashes by which contents are told apart.

use super::hex::hex;
use anyhow::{Context, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::PathBuf;

/// Returns the SHA-256 over the names and contents of files, in hexadecimal.
pub fn of_files(paths: &[PathBuf]) -> Result<String> {
    let hash = |path: &PathBuf| -> Result<Vec<u8>> {
        let mut hasher = Sha256::new();
        File::open(path)
            .and_then(|mut file| std::io::copy(&mut file, &mut hasher))
            .with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        Ok([name, &[0], &hasher.finalize()[..]].concat())
    };
    let hashes: Vec<Vec<u8>> = paths.par_iter().map(hash).collect::<Result<_>>()?;
    Ok(hex(Sha256::digest(hashes.concat())))
}
