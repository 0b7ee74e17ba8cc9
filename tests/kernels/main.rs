//! This test runs every kernel of `kernels/` against its twin in `src/ops`, without a GPU. A C++
//! compiler builds the sources for the CPU (`tests/emulated_gpu`), and the launchers of
//! `src/cuda/kernels` run them there.
//!
//! Contract: inputs are random and rounded to bf16, and outputs start as NaNs. Each test runs with
//! the threads of a block forwards, backwards and in random order, and must give the same bits.
//! Every access to memory is checked for races, bounds and alignment. Then the test runs with fp16,
//! in one order. Errors, relative to the larger of a number and the root mean square of all, stay
//! under 1e-2 for bf16, 2e-3 for fp16 and 1e-5 for fp32. Without a C++ compiler nothing is tested,
//! and one line says so.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod attention;
mod compare;
mod cuda;
mod elementwise;
mod emulation;
mod optimizer;
mod rows;
mod sampling;

// Where the launchers look for it.
use codeseq::ops;
use cuda::half::HalfFormat;
use emulation::{Gpu, Library};
use std::path::Path;

#[test]
fn the_emulation_finds_the_usual_mistakes() {
    let Some(library) = Library::get() else { return };
    for order in emulation::ORDERS {
        let run = |name| {
            let gpu = Gpu::new(library, HalfFormat::Bf16, order);
            let mut out = gpu.poisoned::<u32>(2 * 64);
            gpu.launch(name, 2, 64, &[&out.slice_mut()]).map_err(|error| error.to_string())
        };
        run("faultless").unwrap();
        let faulty = [
            ("faulty_barrier", "another thread's"),
            ("faulty_warp", "another thread's"),
            ("faulty_reuse", "another thread's"),
            ("faulty_blocks", "write after another thread's write"),
            ("faulty_bounds", "write outside"),
            ("faulty_alignment", "misaligned access"),
            ("faulty_divergence", "a barrier that not all threads reach"),
        ];
        for (name, expected) in faulty {
            let error = run(name).err().unwrap_or_else(|| format!("{name} went well"));
            assert!(error.contains(expected), "{name}, order {order}: {error}");
        }
    }
}

#[test]
fn every_source_of_kernels_is_in_the_emulation() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = std::fs::read_to_string(root.join("tests/emulated_gpu/library.cpp")).unwrap();
    for file in std::fs::read_dir(root.join("kernels")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let is_there = library.contains(&format!("#include \"../../kernels/{name}\""));
        assert!(is_there || !name.ends_with(".cu"), "{name} is missing in library.cpp");
    }
}
