//! This file tests collectives between GPUs if there are several, else between emulated ones.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run has failed")]
#![expect(clippy::print_stdout, reason = "says when it is skipped")]

mod cuda_support;

use bytemuck::Pod;
use codeseq::cuda::nccl::{self, Communicator, UniqueId};
use codeseq::cuda::{Arena, Device, DeviceBuffer, Half, HalfFormat, Stream, Transfer, device};
use codeseq::ranks::piece;
use std::sync::{Arc, Barrier};

const RANKS: usize = 3;

struct Rank {
    number: usize,
    group: Communicator,
    stream: Stream,
    arena: Arena,
    transfer: Transfer,
}

impl Rank {
    fn join(id: UniqueId, number: usize, format: HalfFormat) -> Self {
        let device = Device::open(number, format).unwrap();
        Self {
            number,
            group: joined(&device, id, number),
            stream: Stream::new(&device).unwrap(),
            arena: Arena::new(&device, 1 << 20).unwrap(),
            transfer: Transfer::new(&device).unwrap(),
        }
    }

    fn put<T: Pod>(&mut self, numbers: &[T]) -> DeviceBuffer<'static, T> {
        let mut buffer = self.arena.lasting("numbers", numbers.len()).unwrap();
        self.transfer.upload(&self.stream, numbers, buffer.slice_mut()).unwrap();
        buffer
    }

    fn get<T: Pod>(&mut self, buffer: &DeviceBuffer<'_, T>) -> Vec<T> {
        let mut numbers = vec![T::zeroed(); buffer.len()];
        self.transfer.download(&self.stream, buffer.slice(), &mut numbers).unwrap();
        numbers
    }
}

/// Runs `work` on every rank of a group. Where there are too few GPUs, it does nothing and prints a
/// message.
fn on_every_rank(format: HalfFormat, work: impl Fn(Rank) + Sync) {
    let found = cuda_support::driver().map(|_| device::count().unwrap_or(0));
    if found.is_none_or(|count| count < RANKS) {
        return println!("SKIPPED: {found:?} GPUs, {RANKS} needed");
    }
    if let Err(absent) = nccl::version() {
        return println!("SKIPPED: {absent:#}");
    }
    let id = UniqueId::new().unwrap();
    std::thread::scope(|scope| {
        for number in 0..RANKS {
            let work = &work;
            scope.spawn(move || work(Rank::join(id, number, format)));
        }
    });
}

/// Returns what rank `rank` brings: whole numbers that every format has.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 3 + rank * 5) % 17) as f32 - 8.0).collect()
}

fn sums(len: usize) -> Vec<f32> {
    let all: Vec<_> = (0..RANKS).map(|rank| numbers(rank, len)).collect();
    (0..len).map(|i| all.iter().map(|numbers| numbers[i]).sum()).collect()
}

fn joined(device: &Arc<Device>, id: UniqueId, rank: usize) -> Communicator {
    let group = Communicator::join(device, id, rank, RANKS).unwrap();
    group.wait().unwrap();
    group
}

#[test]
fn cuda_a_bucket_is_summed_and_its_pieces_gathered_whatever_its_length() {
    for format in [HalfFormat::Bf16, HalfFormat::Fp16] {
        let narrow = |numbers: Vec<f32>| -> Vec<Half> {
            numbers.into_iter().map(|x| format.narrow(x)).collect()
        };
        on_every_rank(format, |mut rank| {
            for len in [3 * 40, 100, 2] {
                let mut bucket = rank.put(&narrow(numbers(rank.number, len)));
                rank.group.reduce_scatter(&rank.stream, bucket.slice_mut()).unwrap();
                let own = piece(len, RANKS, rank.number);
                assert_eq!(rank.get(&bucket)[own.clone()], narrow(sums(len))[own]);
                rank.group.all_gather(&rank.stream, bucket.slice_mut()).unwrap();
                assert_eq!(rank.get(&bucket), narrow(sums(len)));
            }
        });
    }
}

#[test]
fn cuda_values_are_summed_on_every_rank() {
    on_every_rank(HalfFormat::Bf16, |mut rank| {
        let mut values = rank.put(&numbers(rank.number, 50));
        rank.group.all_reduce(&rank.stream, values.slice_mut()).unwrap();
        assert_eq!(rank.get(&values), sums(50));
        let mut count = rank.put(&[rank.number as f64]);
        rank.group.all_reduce(&rank.stream, count.slice_mut()).unwrap();
        assert_eq!(rank.get(&count), [3.0]);
    });
}

#[test]
fn cuda_a_rank_that_its_peers_left_comes_back_when_it_aborts() {
    let left = Barrier::new(RANKS);
    on_every_rank(HalfFormat::Bf16, |mut rank| {
        let mut values = rank.put(&[1.0f32; 8]);
        // The first collective connects the ranks, so all of them must take part.
        rank.group.all_reduce(&rank.stream, values.slice_mut()).unwrap();
        rank.stream.synchronize().unwrap();
        if rank.number == 0 {
            rank.group.all_reduce(&rank.stream, values.slice_mut()).unwrap();
            left.wait();
            rank.group.abort();
            let _ = rank.stream.synchronize();
            let refusal = rank.group.all_reduce(&rank.stream, values.slice_mut()).unwrap_err();
            assert!(refusal.is::<codeseq::ranks::Aborted>(), "{refusal:#}");
        } else {
            left.wait();
            rank.group.abort();
        }
    });
}
