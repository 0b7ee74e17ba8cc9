//! What tests against golden files share: reading tensors, and the distance of two of them.

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by name, widened to f32.
pub(crate) type Tensors = BTreeMap<String, Vec<f32>>;

/// A place below `tests/golden`.
pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// The tensors of a safetensors file.
pub(crate) fn read_tensors(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).expect("the file is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let widened = tensors.iter().map(|(name, view)| {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
            Dtype::BF16 => {
                data.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        (name.to_owned(), values)
    });
    widened.collect()
}

/// |actual - expected| over |expected|, as vectors.
pub(crate) fn relative_distance(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let differences = actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - f64::from(*e));
    norm(&mut { differences }) / norm(&mut expected.iter().map(|&e| f64::from(e)))
}
