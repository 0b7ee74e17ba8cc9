//! Ranges of settings: one line that names the key, its value and what it may be.
//!
//! A component checks its own settings: it knows their names and ranges, and is told the `table` in which
//! they stand.

use super::error::usage;
use anyhow::Result;
use std::ops::RangeInclusive;

/// The largest size that a setting may have, and product of settings that are held at once: no machine
/// holds more, and what is computed from them stays within 64 bits.
const MOST: usize = 1 << 30;

/// More than any coefficient is.
pub const LARGE: f64 = 1e6;

/// Refuses a size of 0 or over [`MOST`]; the first one is named by its key.
pub fn refuse_sizes(table: &str, sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| !(1..=MOST).contains(size)) {
        Some((key, 0)) => Err(usage(format!("{table}.{key} is 0: it must be at least 1"))),
        Some((key, size)) => {
            Err(usage(format!("{table}.{key} is {size}: it must be at most {MOST}")))
        }
        None => Ok(()),
    }
}

/// Refuses sizes whose product is over [`MOST`], each of which is not; `what` says what they make.
pub fn refuse_product(table: &str, what: &str, sizes: &[(&str, usize)]) -> Result<()> {
    let product = sizes.iter().fold(1, |product: u128, (_, size)| product * *size as u128);
    if product <= MOST as u128 {
        return Ok(());
    }
    let names: Vec<String> = sizes.iter().map(|(key, _)| format!("{table}.{key}")).collect();
    Err(usage(format!("{} make {product} {what}: at most {MOST} can be", names.join(" x "))))
}

/// Refuses a number outside its range; the first one is named by its key.
pub fn refuse_outside(table: &str, numbers: &[(&str, f64, RangeInclusive<f64>)]) -> Result<()> {
    match numbers.iter().find(|(_, value, range)| !range.contains(value)) {
        Some((key, value, range)) => Err(usage(format!(
            "{table}.{key} is {value}: it must be from {:?} to {:?}",
            range.start(),
            range.end()
        ))),
        None => Ok(()),
    }
}
