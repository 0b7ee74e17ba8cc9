//! Compiles `kernels/*.cu` with the feature `cuda`; without it there is nothing to do.
//!
//! Each file becomes `$OUT_DIR/NAME.fatbin`, which holds compressed code for every compute capability of
//! [`CAPABILITIES`] and PTX for newer ones; the driver takes what fits its GPU. `NAME.ptxas` beside it keeps
//! what the assembler says about registers and spills. A file with 16-bit numbers is compiled once more with
//! these in half precision, to `NAME.fp16.fatbin`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Kernels are compiled for these compute capabilities (80 is 8.0). A GPU runs the code of the largest one
/// with its own first digit that is not above it, so that 8.7 runs that of 8.6.
const CAPABILITIES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// The driver compiles the PTX of this one for GPUs that none of the others fits, such as 11.0.
const PTX: u32 = 100;

/// The compiler's options: warnings are errors, profilers get source lines, all code is compressed.
const OPTIONS: [&str; 10] = [
    "-fatbin",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Werror",
    "all-warnings",
    "-Xptxas",
    "-v",
    "-Xfatbin",
    "-compress-all",
];

/// The name of 16-bit numbers in a source, and the macro that makes them half precision.
const HALF: (&str, &str) = ("Half", "-DHALF_IS_FP16");

/// Half precision is compiled from the same source under this path. The compiler writes the path into the
/// fatbin, where the emulated driver of the tests reads which of the two it is.
const FP16_FOLDER: &str = "kernels/.";

/// One run of the compiler.
struct Compilation<'a> {
    source: &'a Path,
    fatbin: PathBuf,
    is_fp16: bool,
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if let Err(message) = compile_kernels() {
        println!("cargo::error={message}");
    }
}

fn compile_kernels() -> Result<(), String> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let files = list("kernels")?;
    let mut compilations = Vec::new();
    for source in files.iter().filter(|f| f.extension().is_some_and(|e| e == "cu")) {
        let text = std::fs::read_to_string(source);
        let text = text.map_err(|e| format!("{}: {e}", source.display()))?;
        let name = out.join(source.file_stem().unwrap_or_default());
        let fatbin = name.with_extension("fatbin");
        compilations.push(Compilation { source, fatbin, is_fp16: false });
        if text.contains(HALF.0) {
            let fatbin = name.with_extension("fp16.fatbin");
            compilations.push(Compilation { source, fatbin, is_fp16: true });
        }
    }
    let headers = files.iter().filter(|f| f.extension().is_some_and(|e| e == "cuh"));
    let shared = headers.cloned().chain([PathBuf::from("build.rs")]).map(|f| changed(&f));
    let shared = shared.max().flatten();
    let nvcc = find_nvcc()?;
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(compilation) = compilations.get(next.fetch_add(1, Ordering::Relaxed)) {
            compilation.run(&nvcc, shared)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "nvcc: a thread panicked")?)
    })
}

/// Lists the files of a folder in order of their names.
fn list(folder: &str) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|m| m.modified()).ok()
}

/// Finds `nvcc` in `CUDA_HOME`, in the folder of scripts/cuda-toolkit.sh, on the path, or in the
/// usual folder.
fn find_nvcc() -> Result<PathBuf, String> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain([PathBuf::from(".toolkit/bin")]);
    let folders = folders.chain(std::env::split_paths(&path)).chain(["/usr/local/cuda/bin".into()]);
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        "no CUDA compiler (nvcc): run scripts/cuda-toolkit.sh, or set CUDA_HOME".to_owned()
    })
}

/// Returns the option that compiles for a compute capability.
fn code_for(capability: u32) -> String {
    let ptx = if capability == PTX { format!(",compute_{PTX}") } else { String::new() };
    format!("-gencode=arch=compute_{capability},code=[sm_{capability}{ptx}]")
}

impl Compilation<'_> {
    /// Compiles, unless the fatbin is newer than the source and than `shared`, on which all sources depend.
    fn run(&self, nvcc: &Path, shared: Option<SystemTime>) -> Result<(), String> {
        let Self { source, fatbin, is_fp16 } = self;
        if changed(fatbin).is_some_and(|made| Some(made) > changed(source) && Some(made) > shared) {
            return Ok(());
        }
        let mut command = Command::new(nvcc);
        command.args(OPTIONS).args(CAPABILITIES.map(code_for));
        command.arg("-o").arg(fatbin);
        match is_fp16 {
            false => command.arg(source),
            true => command
                .arg(HALF.1)
                .arg(Path::new(FP16_FOLDER).join(source.file_name().unwrap_or_default())),
        };
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let said = said.trim().replace('\n', "\ncargo::error=");
            return Err(format!("{} does not compile:\ncargo::error={said}", source.display()));
        }
        let report = fatbin.with_extension("ptxas");
        std::fs::write(&report, &*said).map_err(|e| format!("{}: {e}", report.display()))
    }
}
