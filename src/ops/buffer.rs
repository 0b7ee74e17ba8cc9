//! Float buffers that start on a cache line and grow to the largest size asked for.
//!
//! A vector load of a packed panel never straddles two cache lines. Once a buffer has seen its largest
//! size, it allocates nothing more. The content of a buffer that has grown is unspecified.

use bytemuck::{Pod, Zeroable};
use std::mem::MaybeUninit;

/// A cache line has this many floats. The parts of a buffer start at multiples of it.
pub const LINE: usize = 16;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A reusable buffer of floats that starts on a cache line.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// Returns a buffer of at least `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::default();
        buffer.grow(len);
        buffer
    }

    /// Returns the first `len` floats, and grows the buffer if it is shorter. Their content is unspecified.
    pub fn grow(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if let Some(more) = lines.checked_sub(self.lines.len()) {
            self.lines.reserve_exact(more);
            ask_for_large_pages(self.lines.spare_capacity_mut());
            self.lines.resize(lines, Line::zeroed());
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }

    /// Returns all floats, a multiple of [`LINE`].
    pub fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Returns all floats, writable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// Returns the bytes that the buffer holds.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }
}

/// Asks the kernel for large pages, which are faster to write for the first time and to read from end to
/// end.
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

/// Returns `len` rounded up to whole cache lines.
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// Cuts `N` parts of the given lengths off the front of a scratch buffer, which grows if needed. Each part
/// starts on a cache line.
pub fn parts<const N: usize>(buffer: &mut Buffer, lens: [usize; N]) -> [&mut [f32]; N] {
    let mut rest = buffer.grow(lens.iter().map(|&len| aligned(len)).sum());
    lens.map(|len| {
        let (part, tail) = std::mem::take(&mut rest).split_at_mut(aligned(len));
        rest = tail;
        &mut part[..len]
    })
}
