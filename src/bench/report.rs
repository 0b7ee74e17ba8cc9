//! What a measurement says: where it ran, and a line for each thing measured.
//!
//! Contract: the same numbers as text and as JSON. The limit of a line is the larger of the time that
//! its bytes take at the bandwidth of a copy and its operations at the best rate of a product;
//! its share is that over the time taken.

use crate::base::table::Table;
use crate::cuda::device::{Properties, driver_version};
use crate::train::environment::Environment;
use anyhow::Result;
use serde::Serialize;
use std::fmt;

/// The name that the emulated driver gives to its devices.
const EMULATED: &str = "Emulated GPU (no hardware)";

/// A measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command line.
    pub command: Vec<String>,
    /// The device.
    pub device: Properties,
    /// The CUDA version that the driver supports, 1000 major + 10 minor.
    pub driver: i32,
    /// Whether there was no device, so that no time means anything.
    pub is_emulated: bool,
    /// Machine and program.
    pub environment: Environment,
    /// What bounds every line.
    pub limits: Option<Limits>,
    /// What was measured.
    pub lines: Vec<Line>,
    /// What else is known, as names and values.
    pub facts: Vec<(String, String)>,
}

/// Rates that bound all work on a device.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Bytes read and written by a copy in a second.
    pub bytes_per_second: f64,
    /// Operations of the best product in a second.
    pub flops_per_second: f64,
}

impl Limits {
    /// Those of an H100 SXM by its data sheet: where a command measures none.
    pub const H100: Self = Self { bytes_per_second: 3.35e12, flops_per_second: 989.4e12 };
}

/// One thing that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Median time.
    pub milliseconds: f64,
    /// Bytes that have to cross the device's memory.
    pub bytes: f64,
    /// Floating-point operations.
    pub flops: f64,
}

impl Line {
    /// Gigabytes in a second.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes / self.milliseconds / 1e6
    }

    /// 10^12 operations in a second.
    pub fn teraflops(&self) -> f64 {
        self.flops / self.milliseconds / 1e9
    }

    /// The share of what the device can do at best.
    fn share(&self, limits: &Limits) -> f64 {
        let seconds =
            (self.bytes / limits.bytes_per_second).max(self.flops / limits.flops_per_second);
        seconds * 1e3 / self.milliseconds
    }
}

impl Report {
    /// An empty one.
    pub fn new(command: Vec<String>, device: &Properties) -> Result<Self> {
        Ok(Self {
            command,
            device: device.clone(),
            driver: driver_version()?,
            is_emulated: device.name == EMULATED,
            environment: Environment::current(),
            limits: None,
            lines: Vec::new(),
            facts: Vec::new(),
        })
    }

    /// Adds something known.
    pub fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.facts.push((name.to_owned(), value.to_string()));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_emulated {
            writeln!(f, "EMULATED: there is no GPU here, and none of these times means anything.")?;
        }
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        writeln!(f, "{}, driver for CUDA {major}.{minor}", self.device.name)?;
        let commit = self.environment.commit.as_deref().unwrap_or("of an unknown commit");
        writeln!(f, "train {} {commit}: {}", self.environment.version, self.command.join(" "))?;
        let mut table = Table::new(["", "ms", "GB/s", "TFLOP/s", "of limit"]);
        for line in &self.lines {
            let rate = |x: f64| if x > 0.0 { format!("{x:.1}") } else { "-".to_owned() };
            let (bandwidth, flops) = (rate(line.gigabytes_per_second()), rate(line.teraflops()));
            let share = |limits: Limits| format!("{:.0} %", 100.0 * line.share(&limits));
            let share = self.limits.map_or("-".to_owned(), share);
            let time = format!("{:.4}", line.milliseconds);
            table.row([line.name.clone(), time, bandwidth, flops, share]);
        }
        write!(f, "\n{table}")?;
        if !self.facts.is_empty() {
            writeln!(f)?;
        }
        for (name, value) in &self.facts {
            writeln!(f, "{name:<44}{value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str) -> Report {
        let properties = Properties {
            ordinal: 0,
            name: name.to_owned(),
            memory_bytes: 80 << 30,
            capability: (9, 0),
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            l2_bytes: 50 << 20,
        };
        Report {
            command: vec!["train".to_owned(), "bench".to_owned()],
            device: properties,
            driver: 13_000,
            is_emulated: name == EMULATED,
            environment: Environment::current(),
            limits: Some(Limits { bytes_per_second: 3e12, flops_per_second: 700e12 }),
            lines: vec![Line {
                name: "copy".to_owned(),
                milliseconds: 2.0,
                bytes: 3e9,
                flops: 0.0,
            }],
            facts: Vec::new(),
        }
    }

    #[test]
    fn a_line_tells_its_rate_and_its_share_of_the_limit() {
        let text = report("H100").to_string();
        let line = text.lines().find(|line| line.starts_with("copy")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["copy", "2.0000", "1500.0", "-", "50", "%"]);
    }

    #[test]
    fn times_without_hardware_are_called_meaningless_before_anything_else() {
        assert!(report(EMULATED).to_string().starts_with("EMULATED: there is no GPU"));
        assert!(!report("H100").to_string().contains("EMULATED"));
    }
}
