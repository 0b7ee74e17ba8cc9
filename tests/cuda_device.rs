//! This file tests devices, memory, copies, graphs and products, on a GPU if there is one, else on
//! the emulated one.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says where it runs, and when it is skipped")]

mod cuda_support;

use codeseq::cuda::gemm::{Gemm, Linear, Start};
use codeseq::cuda::kernels::Kernels;
use codeseq::cuda::{Arena, Device, Event, Half, HalfFormat, Stream, Transfer, device, inventory};
use cuda_support::Driver;
use std::sync::Arc;

const BF16: HalfFormat = HalfFormat::Bf16;

/// Returns the first device, or `None` and a message where this program has none to run on.
fn first_device() -> Option<Arc<Device>> {
    device_with(BF16)
}

/// Does the same with 16-bit numbers of this format.
fn device_with(format: HalfFormat) -> Option<Arc<Device>> {
    match cuda_support::driver() {
        Some(Driver::Real) => {
            Device::open(0, format).inspect_err(|refusal| println!("SKIPPED: {refusal:#}")).ok()
        }
        Some(Driver::StandIn) => {
            println!("emulated: no GPU here");
            Some(Device::open(0, format).unwrap())
        }
        None => {
            println!("SKIPPED: neither an NVIDIA driver nor a C++ compiler");
            None
        }
    }
}

#[test]
fn cuda_inventory_tells_devices_and_that_kernels_run() {
    let Some(device) = first_device() else { return };
    let lines = inventory().lines();
    let gpu = &lines.iter().find(|(name, _)| name == "gpu 0").unwrap().1;
    assert!(gpu.contains(&device.properties().name), "{gpu}");
    assert!(gpu.contains("compute capability 9.0") && gpu.ends_with("kernels run"), "{gpu}");
}

#[test]
fn cuda_what_is_uploaded_comes_back_however_long_it_is() {
    let Some(device) = first_device() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut transfer = Transfer::new(&device).unwrap();
    let longest = (40 << 20) / 4 + 3;
    let mut arena = Arena::new(&device, 2 * (4 * longest + 256)).unwrap();
    let mut buffer = arena.lasting::<u32>("numbers", longest).unwrap();
    let mut copy = arena.lasting::<u32>("a copy", longest).unwrap();
    let numbers: Vec<u32> = (0..longest as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    for len in [0, 1, 1000, (16 << 20) / 4, longest] {
        transfer.upload(&stream, &numbers[..len], buffer.slice_mut().range(0..len)).unwrap();
        stream.copy(copy.slice_mut().range(0..len), buffer.slice().range(0..len)).unwrap();
        let mut back = vec![0; len];
        transfer.download(&stream, copy.slice().range(0..len), &mut back).unwrap();
        assert!(back == numbers[..len], "{len} numbers");
    }
}

#[test]
fn cuda_phases_take_turns_in_the_same_memory() {
    let Some(device) = first_device() else { return };
    let stream = Stream::new(&device).unwrap();
    let mut transfer = Transfer::new(&device).unwrap();
    let mut arena = Arena::new(&device, 4096).unwrap();
    let mut lasting = arena.lasting::<u8>("parameters", 1024).unwrap();
    stream.fill(lasting.slice_mut(), 7).unwrap();
    for (name, byte) in [("gradients", 1), ("key-value cache", 2)] {
        let mut phase = arena.phase();
        assert_eq!(phase.free_bytes(), 3072);
        let mut all = phase.take::<u8>(name, 3072).unwrap();
        assert!(phase.take::<u8>("more", 1).is_err());
        stream.fill(all.slice_mut(), byte).unwrap();
        let mut back = vec![0; 3072];
        transfer.download(&stream, all.slice(), &mut back).unwrap();
        assert_eq!(back, [byte; 3072]);
    }
    let mut back = vec![0; 1024];
    transfer.download(&stream, lasting.slice(), &mut back).unwrap();
    assert_eq!(back, [7; 1024]);
    assert_eq!(arena.peak_bytes(), 4096);
}

#[test]
fn cuda_an_arena_beyond_the_device_says_what_was_asked_for() {
    let Some(device) = first_device() else { return };
    let text = format!("{:#}", Arena::new(&device, 1 << 50).unwrap_err());
    assert!(text.contains("1024.0 TiB were asked for") && text.contains("GPU 0 has"), "{text}");
    assert!(text.contains("out of memory"), "{text}");
}

#[test]
fn cuda_a_device_that_is_not_there_is_refused() {
    if first_device().is_none() {
        return;
    }
    let count = device::count().unwrap();
    let text = format!("{:#}", Device::open(count, BF16).unwrap_err());
    assert!(text.contains(&format!("no GPU {count}: {count} are visible")), "{text}");
}

#[test]
fn cuda_a_stream_waits_for_what_another_recorded() {
    let Some(device) = first_device() else { return };
    let (first, second) = (Stream::new(&device).unwrap(), Stream::new(&device).unwrap());
    let mut transfer = Transfer::new(&device).unwrap();
    let mut arena = Arena::new(&device, 1 << 20).unwrap();
    let mut buffer = arena.lasting::<u8>("bytes", 1 << 20).unwrap();
    let done = Event::new(&device).unwrap();
    first.fill(buffer.slice_mut(), 5).unwrap();
    done.record(&first).unwrap();
    second.wait(&done).unwrap();
    let mut back = vec![0; 1 << 20];
    transfer.download(&second, buffer.slice(), &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 5));
}

#[test]
fn cuda_memory_starts_as_numbers_that_show() {
    let Some(device) = first_device() else { return };
    if cuda_support::driver() == Some(Driver::Real) {
        return;
    }
    let (stream, mut transfer) = (Stream::new(&device).unwrap(), Transfer::new(&device).unwrap());
    let mut arena = Arena::new(&device, 100 << 20).unwrap();
    let buffer = arena.lasting::<f32>("nothing", 25 << 20).unwrap();
    for place in [0, 1 << 20, (25 << 20) - 1] {
        let mut back = [0.0];
        transfer.download(&stream, buffer.slice().range(place..place + 1), &mut back).unwrap();
        assert!(back[0].is_nan());
    }
}

#[test]
fn cuda_a_graph_repeats_what_was_queued_with_the_arguments_of_then() {
    let Some(device) = first_device() else { return };
    let stream = Stream::new(&device).unwrap();
    let (kernels, mut transfer) =
        (Kernels::load(&device).unwrap(), Transfer::new(&device).unwrap());
    let mut arena = Arena::new(&device, 1 << 20).unwrap();
    let mut narrow = arena.lasting::<Half>("narrow", 1000).unwrap();
    let mut wide = arena.lasting::<f32>("wide", 1000).unwrap();
    let numbers = |start: usize| -> Vec<Half> {
        (start..start + 1000).map(|i| BF16.narrow(i as f32)).collect()
    };
    transfer.upload(&stream, &numbers(0), narrow.slice_mut()).unwrap();
    let graph = stream
        .capture(|stream| kernels.flat.widen(stream, narrow.slice(), wide.slice_mut()))
        .unwrap();
    for start in [0, 1000] {
        let expected = numbers(start);
        transfer.upload(&stream, &expected, narrow.slice_mut()).unwrap();
        stream.fill(wide.slice_mut(), 0).unwrap();
        // SAFETY: the buffers are still there.
        unsafe { graph.launch(&stream) }.unwrap();
        let mut back = vec![0.0; 1000];
        transfer.download(&stream, wide.slice(), &mut back).unwrap();
        assert!(back.iter().zip(&expected).all(|(&a, &e)| a == BF16.widen(e)));
    }
}

/// Returns small whole numbers, whose sums are exact.
fn whole(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect()
}

/// Returns `[rows, columns]` of sums of `depth` products.
fn sums(
    [rows, columns, depth]: [usize; 3],
    product: impl Fn(usize, usize, usize) -> f32,
) -> Vec<f32> {
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    places.map(|(row, column)| (0..depth).map(|i| product(row, column, i)).sum()).collect()
}

#[test]
fn cuda_products_of_a_linear_layer_are_those_of_its_definition() {
    for format in [BF16, HalfFormat::Fp16] {
        let Some(device) = device_with(format) else { return };
        let (stream, mut transfer) =
            (Stream::new(&device).unwrap(), Transfer::new(&device).unwrap());
        let mut arena = Arena::new(&device, 64 << 20).unwrap();
        let mut gemm = match Gemm::new(&mut arena) {
            Ok(gemm) => gemm,
            Err(absent) => return println!("SKIPPED: {absent:#}"),
        };
        let sizes = Linear { rows: 19, inputs: 40, outputs: 24 };
        let Linear { rows, inputs, outputs } = sizes;
        let (x, w) = (whole(rows * inputs, 1), whole(outputs * inputs, 2));
        let (dy, bias) = (whole(rows * outputs, 3), whole(outputs, 4));
        let narrow =
            |numbers: &[f32]| -> Vec<Half> { numbers.iter().map(|&x| format.narrow(x)).collect() };
        let mut put = |name: &str, numbers: &[f32]| {
            let mut buffer = arena.lasting::<Half>(name, numbers.len()).unwrap();
            transfer.upload(&stream, &narrow(numbers), buffer.slice_mut()).unwrap();
            buffer
        };
        let device_numbers = [put("x", &x), put("w", &w), put("dy", &dy), put("bias", &bias)];
        let [own_x, own_w, own_dy, own_bias] = &device_numbers;
        let mut y = put("y", &vec![f32::NAN; rows * outputs]);
        let mut dx = put("dx", &vec![f32::NAN; rows * inputs]);
        let mut dw = arena.lasting::<f32>("dw", outputs * inputs).unwrap();

        let start = Start::Bias(own_bias.slice());
        gemm.forward(&stream, sizes, own_x.slice(), own_w.slice(), start, y.slice_mut()).unwrap();
        let (own_dy, own_w) = (own_dy.slice(), own_w.slice());
        gemm.input_gradient(&stream, sizes, own_dy, own_w, Start::Zero, dx.slice_mut()).unwrap();
        for start in [Start::Zero, Start::Accumulate] {
            gemm.weight_gradient(&stream, sizes, own_dy, own_x.slice(), start, dw.slice_mut())
                .unwrap();
        }

        let number = |numbers: &[f32], columns: usize, row: usize, column: usize| {
            numbers[row * columns + column]
        };
        let expected_y = sums([rows, outputs, inputs], |row, column, i| {
            number(&x, inputs, row, i) * number(&w, inputs, column, i)
        });
        let with_bias = expected_y.iter().enumerate().map(|(i, y)| y + bias[i % outputs]);
        let mut back = vec![Half::ZERO; rows * outputs];
        transfer.download(&stream, y.slice(), &mut back).unwrap();
        assert_eq!(back, narrow(&with_bias.collect::<Vec<_>>()));

        let expected_dx = sums([rows, inputs, outputs], |row, column, i| {
            number(&dy, outputs, row, i) * number(&w, inputs, i, column)
        });
        let mut back = vec![Half::ZERO; rows * inputs];
        transfer.download(&stream, dx.slice(), &mut back).unwrap();
        assert_eq!(back, narrow(&expected_dx));

        let expected_dw = sums([outputs, inputs, rows], |row, column, i| {
            2.0 * number(&dy, outputs, i, row) * number(&x, inputs, i, column)
        });
        let mut back = vec![0.0; outputs * inputs];
        transfer.download(&stream, dw.slice(), &mut back).unwrap();
        assert_eq!(back, expected_dw);
    }
}
