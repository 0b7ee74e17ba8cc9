//! This file opens the NVIDIA driver and describes and opens its GPUs.
//!
//! Contract: a machine without a driver, with a driver that is too old, or without a GPU gives one
//! clear error, never a panic. A [`Device`] holds the primary context of a GPU. Every call of
//! `cuda` makes that context current to the calling thread, so a device may be used from any
//! thread.

use super::half::HalfFormat;
use anyhow::{Context, Result, bail};
use cudarc::driver::result::{self, ctx, device};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use libloading::Library;
use serde::Serialize;
use std::sync::{Arc, OnceLock};

/// The driver must support this CUDA version (1000 major + 10 minor), with which the kernels are
/// compiled.
const MINIMUM_DRIVER: i32 = 13_000;

/// A GPU must have at least this compute capability (major, minor): older ones have no bf16.
pub const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// The driver reports these properties of a GPU.
#[derive(Clone, Debug, Serialize)]
pub struct Properties {
    /// The GPU has this index among the visible devices; `CUDA_VISIBLE_DEVICES` decides which those
    /// are.
    pub ordinal: usize,
    pub name: String,
    pub memory_bytes: usize,
    /// The pair is (major, minor).
    pub capability: (i32, i32),
    pub multiprocessors: usize,
    /// One block may ask for at most this much shared memory.
    pub shared_bytes_per_block: usize,
    /// The second-level cache has this size.
    pub l2_bytes: usize,
}

/// The emulated driver of the tests gives this name to its devices.
pub(crate) const EMULATED: &str = "Emulated GPU (no hardware)";

impl Properties {
    /// Tells whether this is the emulated GPU of the tests, whose times mean nothing.
    pub fn is_emulated(&self) -> bool {
        self.name == EMULATED
    }
}

/// An opened GPU: its primary context, and the 16-bit number format that it computes with.
#[derive(Debug)]
pub struct Device {
    properties: Properties,
    half_format: HalfFormat,
    context: sys::CUcontext,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Device {}

/// Opens and initialises the driver on the first call, and returns the newest CUDA version that it
/// supports (1000 major + 10 minor).
pub fn driver_version() -> Result<i32> {
    static DRIVER: OnceLock<Result<i32, String>> = OnceLock::new();
    let open = || {
        // SAFETY: the driver may be loaded at any time.
        let library = unsafe { Library::new("libcuda.so.1") }.map_err(|e| {
            format!("this machine has no NVIDIA driver ({:#})", anyhow::Error::from(e))
        })?;
        // SAFETY: looked for, and not called as this type.
        unsafe { library.get::<*const ()>("cuInit") }
            .map_err(|_| "libcuda.so.1 is no NVIDIA driver: it has no cuInit".to_owned())?;
        result::init().map_err(|e| format!("the NVIDIA driver does not start: {e}"))?;
        let mut version = 0;
        // SAFETY: writes one integer.
        let status = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        status.map_err(|e| format!("the NVIDIA driver does not report its version: {e}"))?;
        Ok(version)
    };
    DRIVER.get_or_init(open).clone().map_err(anyhow::Error::msg)
}

/// Returns the number of visible GPUs.
pub fn count() -> Result<usize> {
    driver_version()?;
    Ok(device::get_count().context("counting GPUs")? as usize)
}

/// Returns the properties of GPU `ordinal`, without opening it.
pub fn properties(ordinal: usize) -> Result<Properties> {
    let raw = find(ordinal)?;
    // SAFETY: `raw` came from the driver.
    let read = |what| unsafe { device::get_attribute(raw, what) };
    let describe = || -> Result<Properties, result::DriverError> {
        Ok(Properties {
            ordinal,
            name: device::get_name(raw)?,
            // SAFETY: `raw` came from the driver.
            memory_bytes: unsafe { device::total_mem(raw) }?,
            capability: (
                read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: read(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            shared_bytes_per_block: read(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )? as usize,
            l2_bytes: read(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        })
    };
    describe().with_context(|| format!("reading the properties of GPU {ordinal}"))
}

/// Returns the properties of GPU `ordinal`. Fails where the driver or the GPU is too old for our
/// kernels.
pub fn usable(ordinal: usize) -> Result<Properties> {
    let driver = driver_version()?;
    if driver < MINIMUM_DRIVER {
        let (major, minor) = (driver / 1000, driver % 1000 / 10);
        bail!("the driver supports CUDA {major}.{minor}; 13.0 is needed (driver 580 or newer)");
    }
    let properties = properties(ordinal)?;
    if properties.capability < OLDEST_CAPABILITY {
        let (major, minor) = properties.capability;
        bail!(
            "GPU {ordinal} ({}) has compute capability {major}.{minor}; 8.0 or newer is needed \
             (A100, RTX 30, and what came later)",
            properties.name
        );
    }
    Ok(properties)
}

/// Tells whether GPU `from` can read the memory of GPU `to` directly.
pub fn can_access_peer(from: usize, to: usize) -> Result<bool> {
    let (from, to) = (find(from)?, find(to)?);
    let mut can = 0;
    // SAFETY: both devices came from the driver; writes one integer.
    unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, from, to) }
        .result()
        .context("asking for peer access")?;
    Ok(can != 0)
}

fn find(ordinal: usize) -> Result<sys::CUdevice> {
    let there = count()?;
    if ordinal >= there {
        bail!("there is no GPU {ordinal}: {there} are visible (CUDA_VISIBLE_DEVICES hides others)");
    }
    device::get(ordinal as i32).with_context(|| format!("opening GPU {ordinal}"))
}

impl Device {
    /// Opens GPU `ordinal`. Fails as [`usable`] does.
    pub fn open(ordinal: usize, half_format: HalfFormat) -> Result<Arc<Self>> {
        let (raw, properties) = (find(ordinal)?, usable(ordinal)?);
        // The context is never released: libraries clean up after our last use of it, and the
        // driver releases it at the end of the process. SAFETY: `raw` came from the driver.
        let context = unsafe { result::primary_ctx::retain(raw) }
            .with_context(|| format!("creating a context on GPU {ordinal}"))?;
        Ok(Arc::new(Self { properties, half_format, context }))
    }

    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Returns the format of every [`Half`](super::Half) on this GPU.
    pub fn half_format(&self) -> HalfFormat {
        self.half_format
    }

    /// Returns how many bytes of the GPU's memory are free, as the driver counts them.
    pub fn free_bytes(&self) -> Result<usize> {
        self.bind()?;
        Ok(result::mem_get_info().context("asking for free GPU memory")?.0)
    }

    /// Makes this GPU's context current to the calling thread.
    pub(crate) fn bind(&self) -> Result<()> {
        if !matches!(ctx::get_current(), Ok(Some(current)) if current == self.context) {
            // SAFETY: the context lives as long as `self`.
            unsafe { ctx::set_current(self.context) }
                .with_context(|| format!("switching to GPU {}", self.properties.ordinal))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_says_so_in_one_line() {
        match driver_version() {
            Ok(version) => assert!(version >= 1000, "{version}"),
            Err(e) => {
                let text = format!("{e:#}");
                assert!(text.contains("driver") && !text.contains('\n'), "{text}");
                assert_eq!(format!("{:#}", Device::open(0, HalfFormat::Bf16).unwrap_err()), text);
            }
        }
    }
}
