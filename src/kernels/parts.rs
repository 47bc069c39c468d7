//! The parts of a product on tiles, as they are written: at once, or where something is added to them or they are smaller
//! than tiles are, behind the next one's sum, because what tiles have just stored is slow to read.

use super::amx::Tiles;
use super::bf16x3::{Packed, SIDE, Sum};
use super::vector::{Plus, map, with_registers};
use pulp::{Simd, WithSimd};

/// Writes parts of a result.
pub struct Parts<'a> {
    tiles: Option<&'a Tiles>,
    /// With rows of so many elements.
    to: *mut f32,
    width: usize,
    /// With the same rows.
    add: Option<*const f32>,
    apart: [Apart; 2],
    /// Which of them is summed up next; the other one is to be written as this part.
    turn: usize,
    waiting: Option<Part>,
}

/// From this row and column on.
#[derive(Clone, Copy)]
struct Part {
    place: [usize; 2],
    size: [usize; 2],
}

impl<'a> Parts<'a> {
    /// Of what `to` begins, with rows of so many elements; `add`, whose rows are as far apart, may be the same.
    pub fn new(tiles: Option<&'a Tiles>, (to, width): (*mut f32, usize), add: Option<*const f32>) -> Self {
        let apart = [const { Apart([0.0; SIDE * SIDE]) }; 2];
        Parts { tiles, to, width, add, apart, turn: 0, waiting: None }
    }

    /// Sums up all steps of these lines; what is packed `ahead` is asked for beforehand, and where a result is written next:
    /// the `next` part, or this one if it has to wait.
    ///
    /// # Safety
    /// Rows and columns of this `size` lie within the result from this place on, and nobody else reads or writes them until
    /// [`Self::finish`].
    #[inline(always)]
    pub unsafe fn sum(
        &mut self,
        [x, y]: [Packed; 2],
        place: [usize; 2],
        size: [usize; 2],
        (ahead, next): (*const f32, [usize; 2]),
    ) {
        let at = |[i, j]: [usize; 2]| self.to.wrapping_add(i * self.width + j);
        let apart = self.add.is_some() || size != [SIDE; 2];
        let (to, row, beside) = if apart {
            (self.apart[self.turn].0.as_mut_ptr(), SIDE, at(place))
        } else {
            (at(place), self.width, at(next))
        };
        let (slabs, beside_row) = (x.slabs, self.width);
        let sum = Sum { x: x.at, y: y.at, slabs, to, row, passing: ahead, beside: beside.cast_const(), beside_row };
        // SAFETY: by the caller's promise.
        unsafe {
            sum.run(self.tiles);
            self.write();
        }
        if apart {
            (self.turn, self.waiting) = (1 - self.turn, Some(Part { place, size }));
        }
    }

    /// Writes the last part.
    ///
    /// # Safety
    /// As for [`Self::sum`].
    pub unsafe fn finish(mut self) {
        // SAFETY: by the caller's promise.
        unsafe { self.write() };
    }

    /// Writes the part that waits.
    ///
    /// # Safety
    /// As for [`Self::sum`].
    #[inline(always)]
    unsafe fn write(&mut self) {
        if let Some(Part { place: [i, j], size }) = self.waiting.take() {
            let place = i * self.width + j;
            let add = self.add.map(|add| add.wrapping_add(place));
            let (sum, to) = (&self.apart[1 - self.turn], self.to.wrapping_add(place));
            with_registers(Put { sum, size, add, to, width: self.width });
        }
    }
}

/// A part that is summed up apart from the result, in whole lines of the cache.
#[repr(align(64))]
struct Apart([f32; SIDE * SIDE]);

/// Writes it to its place.
struct Put<'a> {
    sum: &'a Apart,
    size: [usize; 2],
    add: Option<*const f32>,
    to: *mut f32,
    width: usize,
}

impl WithSimd for Put<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [rows, columns] = self.size;
        for (r, sum) in self.sum.0.chunks_exact(SIDE).enumerate().take(rows) {
            let to = self.to.wrapping_add(r * self.width);
            // SAFETY: there are so many rows and columns of all.
            unsafe {
                match self.add.map(|add| add.add(r * self.width)) {
                    Some(add) if columns == SIDE => {
                        for c in (0..SIDE).step_by(S::F32_LANES) {
                            let [sum, add] = [sum.as_ptr(), add].map(|at| at.add(c).cast::<S::f32s>().read_unaligned());
                            to.add(c).cast::<S::f32s>().write_unaligned(simd.add_f32s(sum, add));
                        }
                    }
                    Some(add) => map(Plus, [sum.as_ptr(), add], to, columns),
                    None => to.copy_from_nonoverlapping(sum.as_ptr(), columns),
                }
            }
        }
    }
}
