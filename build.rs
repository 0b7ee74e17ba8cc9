//! Compiles `kernels/*.cu` with the feature `cuda`; without it there is nothing to do.
//!
//! Each file becomes `$OUT_DIR/NAME.cubin` for compute capability 9.0. `NAME.ptxas` beside it keeps what the
//! assembler says about registers and spills. A file with numbers of 16 bits is compiled once more with these
//! in half precision, to `NAME.fp16.cubin`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// The compiler's options: Hopper alone, warnings are errors, source lines for profilers.
const OPTIONS: [&str; 9] = [
    "-cubin",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Werror",
    "all-warnings",
    "-Xptxas",
    "-v",
];

/// The name of numbers of 16 bits in a source, and the macro that makes them half precision.
const HALF: (&str, &str) = ("Half", "-DHALF_IS_FP16");

/// One run of the compiler.
struct Compilation<'a> {
    source: &'a Path,
    cubin: PathBuf,
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
        let cubin = out.join(source.file_stem().unwrap_or_default());
        compilations.push(Compilation {
            source,
            cubin: cubin.with_extension("cubin"),
            is_fp16: false,
        });
        if text.contains(HALF.0) {
            let cubin = cubin.with_extension("fp16.cubin");
            compilations.push(Compilation { source, cubin, is_fp16: true });
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

/// Lists the files of a folder, in order.
fn list(folder: &str) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|m| m.modified()).ok()
}

/// Finds `nvcc` in `CUDA_HOME`, where scripts/cuda-toolkit.sh put it, on the path, or in the usual folder.
fn find_nvcc() -> Result<PathBuf, String> {
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain([PathBuf::from(".toolkit/bin")]);
    let folders = folders.chain(std::env::split_paths(&path)).chain(["/usr/local/cuda/bin".into()]);
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        "no CUDA compiler (nvcc): run scripts/cuda-toolkit.sh, or set CUDA_HOME".to_owned()
    })
}

impl Compilation<'_> {
    /// Compiles, unless the cubin is newer than the source and than `shared`, on which all sources depend.
    fn run(&self, nvcc: &Path, shared: Option<SystemTime>) -> Result<(), String> {
        let Self { source, cubin, is_fp16 } = self;
        if changed(cubin).is_some_and(|made| Some(made) > changed(source) && Some(made) > shared) {
            return Ok(());
        }
        let mut command = Command::new(nvcc);
        command.args(OPTIONS).args(is_fp16.then_some(HALF.1)).arg("-o").arg(cubin).arg(source);
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let said = said.trim().replace('\n', "\ncargo::error=");
            return Err(format!("{} does not compile:\ncargo::error={said}", source.display()));
        }
        let report = cubin.with_extension("ptxas");
        std::fs::write(&report, &*said).map_err(|e| format!("{}: {e}", report.display()))
    }
}
