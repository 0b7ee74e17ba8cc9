//! Float buffers that start on a cache line and grow to the largest size asked for.
//!
//! Contract: a vector load of a packed panel never straddles two cache lines; once a buffer has seen
//! its largest size nothing is allocated again. What a grown buffer holds is unspecified.

use bytemuck::{Pod, Zeroable};
use std::mem::MaybeUninit;

/// Floats in a cache line; parts of a buffer start at multiples of it.
pub const LINE: usize = 16;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A cache-line-aligned, reusable buffer of floats.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// A buffer of at least `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.grow(len);
        buffer
    }

    /// The first `len` floats, growing if needed; their content is whatever was there.
    pub fn grow(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if let Some(more) = lines.checked_sub(self.lines.len()) {
            self.lines.reserve_exact(more);
            ask_for_large_pages(self.lines.spare_capacity_mut());
            self.lines.resize(lines, Line::zeroed());
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }

    /// Everything, a multiple of [`LINE`] floats.
    pub fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Everything, writable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }
}

/// Large pages make a buffer faster to write for the first time, and to read from end to end.
fn ask_for_large_pages(room: &mut [MaybeUninit<Line>]) {
    const PAGE: usize = 2 << 20;
    let (start, len) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
    let before = start.align_offset(PAGE);
    let pages = len.saturating_sub(before) / PAGE;
    if pages > 0 {
        let first = start.wrapping_add(before).cast();
        // SAFETY: the pages lie within the room, and the advice does not change what they hold.
        // Whether it is taken does not matter.
        let _ = unsafe { libc::madvise(first, pages * PAGE, libc::MADV_HUGEPAGE) };
    }
}

/// `len` rounded up so that what follows starts on a cache line.
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// Cuts `N` aligned parts of the given lengths off the front of a scratch buffer, growing it.
pub fn parts<const N: usize>(buffer: &mut Buffer, lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = buffer.grow(lens.iter().map(|&len| aligned(len)).sum());
    lens.map(|len| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(aligned(len));
        rest = tail;
        &mut part[..len]
    })
}
