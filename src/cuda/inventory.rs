//! This file lists what a machine offers for GPU runs: driver, devices and libraries.
//!
//! Contract: nothing that is missing is an error here; the list says what is missing and why.

use super::device::{self, Device, Properties};
use super::half::HalfFormat;
use super::library::dotted;
use super::memory::Arena;
use super::module::{Module, fatbin};
use super::{Stream, Transfer, cudnn, gemm, nccl};
use crate::base::human;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
pub struct Inventory {
    pub driver: Found<Driver>,
    /// These are the GPUs that `CUDA_VISIBLE_DEVICES` leaves visible.
    pub devices: Vec<Gpu>,
    /// In each pair, the first device can read the memory of the second directly.
    pub peers: Vec<(usize, usize)>,
    /// The program opens these libraries at run time.
    pub libraries: Vec<LibraryState>,
}

/// Something that was found, or the reason why it was not.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Found<T> {
    Here(T),
    Absent {
        /// The text says why it is missing and what to do.
        error: String,
    },
}

#[derive(Debug, Serialize)]
pub struct Driver {
    /// The kernel module reports this version, such as `580.95.05`.
    pub version: Option<String>,
    /// The driver supports CUDA up to this version.
    pub cuda: String,
}

#[derive(Debug, Serialize)]
pub struct Gpu {
    #[serde(flatten)]
    pub properties: Properties,
    /// It is found when a kernel of this program ran on the GPU and gave the expected numbers.
    pub kernels: Found<Runs>,
}

/// The result on a GPU that runs our kernels.
#[derive(Debug, Serialize)]
pub struct Runs {
    /// The driver counts so many bytes of GPU memory as free.
    pub free_bytes: usize,
}

#[derive(Debug, Serialize)]
pub struct LibraryState {
    pub name: &'static str,
    #[serde(flatten)]
    pub state: Found<Located>,
}

#[derive(Debug, Serialize)]
pub struct Located {
    pub version: String,
    /// The library was loaded from this file.
    pub path: Option<PathBuf>,
}

impl<T> From<Result<T>> for Found<T> {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(found) => Self::Here(found),
            Err(e) => Self::Absent { error: format!("{e:#}") },
        }
    }
}

/// Looks for the driver, every visible device and every library, and runs a kernel on each device.
pub fn inventory() -> Inventory {
    let count = device::count().unwrap_or(0);
    let pairs = (0..count).flat_map(|a| (0..count).filter(move |&b| a != b).map(move |b| (a, b)));
    Inventory {
        driver: driver().into(),
        devices: (0..count).filter_map(gpu).collect(),
        peers: pairs.filter(|&(a, b)| device::can_access_peer(a, b).unwrap_or(false)).collect(),
        libraries: vec![
            LibraryState { name: "cuBLASLt", state: cublas_lt().into() },
            LibraryState { name: "cuDNN", state: cudnn().into() },
            LibraryState { name: "NCCL", state: nccl().into() },
        ],
    }
}

fn driver() -> Result<Driver> {
    let cuda = device::driver_version()?;
    ensure!(device::count()? > 0, "the driver shows no GPU (does CUDA_VISIBLE_DEVICES hide them?)");
    let version = std::fs::read_to_string("/sys/module/nvidia/version").ok();
    let version = version.map(|version| version.trim().to_owned());
    Ok(Driver { version, cuda: format!("{}.{}", cuda / 1000, cuda % 1000 / 10) })
}

fn gpu(ordinal: usize) -> Option<Gpu> {
    let properties = device::properties(ordinal).ok()?;
    Some(Gpu { properties, kernels: run_kernel(ordinal).into() })
}

/// Runs `kernels/fill.cu` on a GPU and compares what it wrote.
fn run_kernel(ordinal: usize) -> Result<Runs> {
    const LEN: usize = 1000;
    let device = Device::open(ordinal, HalfFormat::Bf16)?;
    let free_bytes = device.free_bytes()?;
    let fill = Module::load(&device, fatbin!("fill"))?.function("fill_with_index")?;
    let stream = Stream::new(&device)?;
    let mut arena = Arena::new(&device, LEN * size_of::<u32>() + 256)?;
    let mut buffer = arena.lasting::<u32>("a check", LEN)?;
    let grid = LEN.div_ceil(256) as u32;
    // SAFETY: the arguments are those of the kernel, and the buffer has `LEN` elements.
    unsafe { fill.launch(grid, 256, 0, &stream, &[&buffer.slice_mut(), &(LEN as i64)]) }?;
    let mut values = vec![0; LEN];
    Transfer::new(&device)?.download(&stream, buffer.slice(), &mut values)?;
    let is_right = values.iter().zip(0u32..).all(|(&x, i)| x == i.wrapping_mul(2_654_435_761));
    ensure!(is_right, "a kernel ran and gave wrong numbers");
    Ok(Runs { free_bytes })
}

fn cublas_lt() -> Result<Located> {
    let (number, path) = gemm::version()?;
    Ok(Located { version: dotted(number), path })
}

fn cudnn() -> Result<Located> {
    let (number, path) = cudnn::version()?;
    Ok(Located { version: dotted(number), path })
}

fn nccl() -> Result<Located> {
    let (number, path) = nccl::version().context("needed for more than one GPU")?;
    Ok(Located { version: dotted(number as usize), path })
}

impl Inventory {
    /// Returns the list as pairs of a name and a text, as `train doctor` prints them.
    pub fn lines(&self) -> Vec<(String, String)> {
        let Found::Here(driver) = &self.driver else {
            return vec![("gpu".to_owned(), self.driver.text(|_| String::new()))];
        };
        let version = driver.version.as_deref().unwrap_or("of unknown version");
        let mut lines =
            vec![("driver".to_owned(), format!("{version}, supports CUDA {}", driver.cuda))];
        for gpu in &self.devices {
            let Properties { ordinal, name, memory_bytes, capability, multiprocessors, .. } =
                &gpu.properties;
            let memory = human::bytes(*memory_bytes as u64);
            let kernels = gpu
                .kernels
                .text(|runs| format!("{} free, kernels run", human::bytes(runs.free_bytes as u64)));
            let (major, minor) = capability;
            let text = format!(
                "{name}, {memory}, compute capability {major}.{minor}, {multiprocessors} \
                 multiprocessors; {kernels}"
            );
            lines.push((format!("gpu {ordinal}"), text));
        }
        let count = self.devices.len();
        if count > 1 {
            let all = count * (count - 1);
            lines.push((
                "peers".to_owned(),
                format!("{} of {all} pairs read each other's memory", self.peers.len()),
            ));
        }
        lines.extend(self.libraries.iter().map(|library| {
            let place = |located: &Located| match &located.path {
                Some(path) => format!("{} at {}", located.version, path.display()),
                None => located.version.clone(),
            };
            (library.name.to_owned(), library.state.text(place))
        }));
        lines
    }
}

impl<T> Found<T> {
    fn text(&self, here: impl FnOnce(&T) -> String) -> String {
        match self {
            Self::Here(found) => here(found),
            Self::Absent { error } => error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_one_line() {
        let inventory = Inventory {
            driver: Found::Absent { error: "no NVIDIA driver".to_owned() },
            devices: Vec::new(),
            peers: Vec::new(),
            libraries: Vec::new(),
        };
        assert_eq!(inventory.lines(), [("gpu".to_owned(), "no NVIDIA driver".to_owned())]);
    }

    #[test]
    fn devices_and_libraries_get_a_line_each() {
        let properties = |ordinal| Properties {
            ordinal,
            name: "H100".to_owned(),
            memory_bytes: 80 << 30,
            capability: (9, 0),
            multiprocessors: 132,
            shared_bytes_per_block: 232_448,
            l2_bytes: 50 << 20,
        };
        let gpu = |ordinal, kernels| Gpu { properties: properties(ordinal), kernels };
        let absent = |error: &str| Found::Absent { error: error.to_owned() };
        let inventory = Inventory {
            driver: Found::Here(Driver { version: None, cuda: "13.0".to_owned() }),
            devices: vec![
                gpu(0, Found::Here(Runs { free_bytes: 79 << 30 })),
                gpu(1, Found::Absent { error: "kernels do not run".to_owned() }),
            ],
            peers: vec![(0, 1)],
            libraries: vec![LibraryState { name: "NCCL", state: absent("NCCL is not here") }],
        };
        let lines: Vec<_> =
            inventory.lines().into_iter().map(|(n, t)| format!("{n}: {t}")).collect();
        let card = "H100, 80.0 GiB, compute capability 9.0, 132 multiprocessors";
        let expected = [
            "driver: of unknown version, supports CUDA 13.0".to_owned(),
            format!("gpu 0: {card}; 79.0 GiB free, kernels run"),
            format!("gpu 1: {card}; kernels do not run"),
            "peers: 1 of 2 pairs read each other's memory".to_owned(),
            "NCCL: NCCL is not here".to_owned(),
        ];
        assert_eq!(lines, expected);
    }
}
