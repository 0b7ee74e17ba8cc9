//! Devices, memory and copies, on a GPU where there is one, else on a stand-in for the driver that
//! keeps "device" memory on the host.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says where it runs, and when it is skipped")]

mod cuda_support;

use codeseq::cuda::{Arena, Device, Event, Stream, Transfer, device, report};
use cuda_support::{Driver, driver_or};
use std::sync::{Arc, OnceLock};

const HOST_DRIVER: &str = include_str!("cuda_support/host_driver.c");

/// The first device; `None`, said loudly, where there is none that this program runs on.
fn first_device() -> Option<Arc<Device>> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    match DRIVER.get_or_init(|| driver_or(HOST_DRIVER)) {
        Some(Driver::Real) => {
            Device::open(0).inspect_err(|refusal| println!("SKIPPED: {refusal:#}")).ok()
        }
        Some(Driver::StandIn) => {
            println!("on a stand-in: no GPU here");
            Some(Device::open(0).unwrap())
        }
        None => {
            println!("SKIPPED: neither an NVIDIA driver nor a C compiler");
            None
        }
    }
}

#[test]
fn cuda_report_tells_devices_and_that_kernels_run() {
    let Some(device) = first_device() else { return };
    let lines = report().lines();
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
    let text = format!("{:#}", Device::open(count).unwrap_err());
    assert!(text.contains(&format!("no GPU {count}: this machine shows {count}")), "{text}");
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
