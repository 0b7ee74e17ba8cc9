//! This file holds a measurement: where it ran, and one line for each measured thing.
//!
//! Contract: the text and the JSON have the same numbers. The limit of a line is the larger of two
//! times: that of its bytes at the bandwidth of a copy, and that of its operations at the best rate
//! of a product. Its share is that limit over the measured time.

use super::families::{Family, Work};
use crate::base::table::Table;
use crate::cuda::OperationTime;
use crate::cuda::device::{Properties, driver_version};
use crate::model::flops::dense_tflops;
use crate::run::environment::Environment;
use anyhow::Result;
use serde::Serialize;
use std::fmt;

#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// This command line started the measurement.
    pub command: Vec<String>,
    pub device: Properties,
    /// The driver supports this CUDA version (1000 major + 10 minor).
    pub driver: i32,
    /// The device is the emulated one, so no time means anything.
    pub is_emulated: bool,
    pub environment: Environment,
    /// The lines are compared with these limits.
    pub limits: Option<Limits>,
    pub lines: Vec<Line>,
    /// These tables divide the time of a line among families of kernels.
    pub breakdowns: Vec<Breakdown>,
    /// These are other results, as names and values.
    pub facts: Vec<(String, String)>,
}

/// The rates that bound all work on a device.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// A copy reads and writes so many bytes in a second.
    pub bytes_per_second: f64,
    /// The fastest product does so many floating-point operations in a second.
    pub flops_per_second: f64,
}

/// The time and the work of one measured thing.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    /// The time is a median.
    pub milliseconds: f64,
    /// At least so many bytes cross the device's memory.
    pub bytes: f64,
    /// These are floating-point operations.
    pub flops: f64,
}

impl Line {
    /// Returns 10^9 bytes per second.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes / self.milliseconds / 1e6
    }

    /// Returns 10^12 operations per second.
    pub fn teraflops(&self) -> f64 {
        self.flops / self.milliseconds / 1e9
    }

    /// Formats milliseconds, both rates, and the share of the limit.
    fn cells(&self, limits: Option<Limits>) -> [String; 4] {
        let rate = |x: f64| if x > 0.0 { format!("{x:.1}") } else { "-".to_owned() };
        let share = match limits.map(|limits| 100.0 * self.share(&limits)) {
            Some(share) if share > 0.0 => format!("{share:.0} %"),
            _ => "-".to_owned(),
        };
        let time = format!("{:.4}", self.milliseconds);
        [time, rate(self.gigabytes_per_second()), rate(self.teraflops()), share]
    }

    /// Returns the limit over the measured time.
    fn share(&self, limits: &Limits) -> f64 {
        let seconds =
            (self.bytes / limits.bytes_per_second).max(self.flops / limits.flops_per_second);
        seconds * 1e3 / self.milliseconds
    }
}

/// The time of a line, divided among families of kernels. It comes from one more pass, with events
/// around each operation.
#[derive(Clone, Debug, Serialize)]
pub struct Breakdown {
    pub name: String,
    /// The median time of the passes without events.
    pub milliseconds: f64,
    /// Only families with operations are here.
    pub families: Vec<Line>,
    /// Each family has so many operations.
    pub calls: Vec<usize>,
    /// The rest of the time, which no operation took: launches that the device waited for, copies
    /// to and from the host, and the host's own work. It is negative where events cost more than
    /// that.
    pub gaps_milliseconds: f64,
}

impl Breakdown {
    /// Divides `milliseconds` of `name` among families: by the times of its `operations`, beside
    /// the `work` of each family.
    pub fn new(
        name: &str,
        milliseconds: f64,
        operations: &[OperationTime],
        work: impl Fn(Family) -> Work,
    ) -> Self {
        let (mut families, mut calls) = (Vec::new(), Vec::new());
        for family in Family::ALL {
            let own = || operations.iter().filter(|time| Family::of(time.name) == family);
            let count: usize = own().map(|time| time.calls).sum();
            if count > 0 {
                let Work { bytes, flops } = work(family);
                let milliseconds = own().map(|time| f64::from(time.milliseconds)).sum();
                let name = family.name().to_owned();
                families.push(Line { name, milliseconds, bytes, flops });
                calls.push(count);
            }
        }
        let sum: f64 = families.iter().map(|line| line.milliseconds).sum();
        let gaps_milliseconds = milliseconds - sum;
        Self { name: name.to_owned(), milliseconds, families, calls, gaps_milliseconds }
    }

    fn table(&self, limits: Option<Limits>) -> Table {
        let mut table =
            Table::new([&self.name, "calls", "ms", "share", "GB/s", "TFLOP/s", "of limit"]);
        let share = |milliseconds| format!("{:.1} %", 100.0 * milliseconds / self.milliseconds);
        for (line, calls) in self.families.iter().zip(&self.calls) {
            let [time, bandwidth, flops, limit] = line.cells(limits);
            let (name, calls) = (line.name.clone(), calls.to_string());
            table.row([name, calls, time, share(line.milliseconds), bandwidth, flops, limit]);
        }
        for (name, milliseconds) in [
            ("all families", self.milliseconds - self.gaps_milliseconds),
            ("gaps: what is left of the time", self.gaps_milliseconds),
        ] {
            let (calls, time) = (String::new(), format!("{milliseconds:.4}"));
            table.row([name.to_owned(), calls, time, share(milliseconds)]);
        }
        table
    }
}

impl Measurement {
    /// Makes a measurement without lines.
    pub fn new(command: Vec<String>, device: &Properties) -> Result<Self> {
        Ok(Self {
            command,
            device: device.clone(),
            driver: driver_version()?,
            is_emulated: device.is_emulated(),
            environment: Environment::current(),
            limits: None,
            lines: Vec::new(),
            breakdowns: Vec::new(),
            facts: Vec::new(),
        })
    }

    /// Adds the MFU of `flops` in `milliseconds` under `name`, if the card's data sheet is known.
    pub fn add_mfu(&mut self, name: &str, flops: f64, milliseconds: f64) {
        let text = dense_tflops(&self.device.name).map_or_else(
            || "unknown: this program has no data sheet of the card".to_owned(),
            |peak| {
                let share = 100.0 * flops / (milliseconds / 1e3) / (peak * 1e12);
                format!("{share:.1} % of {peak:.1} TFLOP/s")
            },
        );
        self.fact(name, text);
    }

    /// Adds a result as a name and a value.
    pub fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.facts.push((name.to_owned(), value.to_string()));
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_emulated {
            writeln!(f, "EMULATED: there is no GPU here, so none of these times means anything.")?;
        }
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        writeln!(f, "{}, driver for CUDA {major}.{minor}", self.device.name)?;
        let commit = self.environment.commit.as_deref().unwrap_or("of an unknown commit");
        writeln!(f, "train {} {commit}: {}", self.environment.version, self.command.join(" "))?;
        let mut table = Table::new(["", "ms", "GB/s", "TFLOP/s", "of limit"]);
        for line in &self.lines {
            let [time, bandwidth, flops, share] = line.cells(self.limits);
            table.row([line.name.clone(), time, bandwidth, flops, share]);
        }
        write!(f, "\n{table}")?;
        for breakdown in &self.breakdowns {
            write!(f, "\n{}", breakdown.table(self.limits))?;
        }
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
    use crate::cuda::device::EMULATED;

    fn measurement(name: &str) -> Measurement {
        let properties = Properties {
            ordinal: 0,
            name: name.to_owned(),
            memory_bytes: 80 << 30,
            capability: (9, 0),
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            l2_bytes: 50 << 20,
        };
        Measurement {
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
            breakdowns: Vec::new(),
            facts: Vec::new(),
        }
    }

    #[test]
    fn a_line_tells_its_rate_and_its_share_of_the_limit() {
        let text = measurement("H100").to_string();
        let line = text.lines().find(|line| line.starts_with("copy")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["copy", "2.0000", "1500.0", "-", "50", "%"]);
    }

    #[test]
    fn mfu_is_model_flops_over_time_and_the_peak_of_the_card() {
        for (name, expected) in [("NVIDIA H200", "50.0 % of 989.0 TFLOP/s"), (EMULATED, "unknown")]
        {
            let mut measurement = measurement(name);
            measurement.add_mfu("MFU", 989e12, 2000.0);
            assert!(measurement.facts[0].1.starts_with(expected), "{:?}", measurement.facts);
        }
    }

    #[test]
    fn a_breakdown_adds_up_families_and_says_what_is_left() {
        let time = |name, calls, milliseconds| OperationTime { name, calls, milliseconds };
        let operations = [
            time("rms_norm", 2, 1.0),
            time("product", 5, 4.0),
            time("rms_norm_backward", 2, 2.0),
            time("unheard_of", 1, 0.5),
        ];
        let work = |family| match family {
            Family::Norms => Work { bytes: 6e9, flops: 0.0 },
            _ => Work::default(),
        };
        let mut measurement = measurement("H100");
        measurement.breakdowns = vec![Breakdown::new("step", 10.0, &operations, work)];
        let text = measurement.to_string();
        let words = |start: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line[start.len()..].split_whitespace().map(str::to_owned).collect()
        };
        let norms = ["4", "3.0000", "30.0", "%", "2000.0", "-", "67", "%"];
        assert_eq!(words("norms, sums over rows"), norms);
        assert_eq!(words("products (GEMM)"), ["5", "4.0000", "40.0", "%", "-", "-", "-"]);
        assert_eq!(words("other")[..2], ["1", "0.5000"]);
        assert_eq!(words("gaps: what is left of the time"), ["2.5000", "25.0", "%"]);
    }

    #[test]
    fn times_without_hardware_are_called_meaningless_before_anything_else() {
        assert!(measurement(EMULATED).to_string().starts_with("EMULATED: there is no GPU"));
        assert!(!measurement("H100").to_string().contains("EMULATED"));
    }
}
