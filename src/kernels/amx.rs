//! The tiles of Intel's AMX, which multiply bf16 and add up f32.
//!
//! The intrinsics are not stable in Rust, so the instructions are written out.  The operating system lends the tiles to a
//! process that asks for them; a thread says how large they are, and gives them back behind its part of a product.

pub use machine::{Tiles, here, pack};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod machine {
    use super::super::bf16x3::{Lines, Sum};

    pub fn here() -> bool {
        false
    }

    pub enum Tiles {}

    impl Tiles {
        pub fn lend() -> Option<Self> {
            None
        }

        pub unsafe fn multiply(&self, _: Sum) {}
    }

    pub unsafe fn pack(_: Lines, _: [*mut u32; 3]) {}
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod machine {
    use super::super::bf16x3::{HALF, Lines, SIDE, SLAB, Sum, UPPER};
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::marker::PhantomData;
    use std::sync::LazyLock;

    // A slab is three thirds of two tiles, each of 1024 bytes in lines of 64.
    const _: () = assert!(SLAB * size_of::<f32>() == 6144);

    /// Loads a third of a factor.
    macro_rules! third {
        (x $k:literal) => {
            concat!(
                "tileloadd tmm4, [{x} + {line} + 2048*",
                $k,
                "]\ntileloadd tmm5, [{x} + {line} + 2048*",
                $k,
                " + 1024]"
            )
        };
        (y $k:literal) => {
            concat!(
                "tileloadd tmm6, [{y} + {line} + 2048*",
                $k,
                "]\ntileloadd tmm7, [{y} + {line} + 2048*",
                $k,
                " + 1024]"
            )
        };
    }

    macro_rules! products {
        () => {
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7"
        };
    }

    /// Asks for two of the twelve lines that are an eighth of a slab.
    macro_rules! ahead {
        ($k:literal) => {
            concat!("prefetcht1 [{passing} + 128*", $k, "]\nprefetcht1 [{passing} + 128*", $k, " + 64]")
        };
    }

    /// Asks for a row of the next result.
    macro_rules! beside {
        () => {
            "prefetchw [{beside}]\nprefetchw [{beside} + 64]\nadd {beside}, {beside_row}"
        };
    }

    /// Of leaf 7 in edx: tiles, and their products of bf16.
    const FEATURES: u32 = 1 << 24 | 1 << 22;
    /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl` (Linux 5.16), and the number of the tiles' state.
    const ASK: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    /// Whether this machine has tiles that this process may use.
    pub fn here() -> bool {
        static HERE: LazyLock<bool> = LazyLock::new(|| {
            let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & FEATURES == FEATURES;
            // SAFETY: the call changes nothing but what the process may use.
            has && std::is_x86_feature_detected!("avx512f")
                && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK, TILE_DATA) } == 0
        });
        *HERE
    }

    /// The operand of `ldtilecfg`: eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Sizes {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SIZES: Sizes = {
        let (mut bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            bytes[tile] = 64;
            rows[tile] = 16;
            tile += 1;
        }
        Sizes { palette: 1, start: 0, reserved: [0; 14], bytes, rows }
    };

    /// Tiles of this thread, from now on until this is dropped.
    pub struct Tiles(PhantomData<*const ()>);

    impl Tiles {
        /// None where the machine has none.
        pub fn lend() -> Option<Self> {
            if !here() {
                return None;
            }
            // SAFETY: the process may use them.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SIZES, options(nostack, readonly)) };
            Some(Tiles(PhantomData))
        }

        /// What [`Sum::run`] does.  The result stays in tiles 0 to 3, row by row; 4 and 5 hold a third of x, 6 and 7 one of y.
        /// From one product to the next only one of the factors changes.
        ///
        /// # Safety
        /// As there.
        #[inline(always)]
        pub unsafe fn multiply(&self, Sum { x, y, slabs, to, row, passing, beside, beside_row }: Sum) {
            let [row, beside_row] = [row, beside_row].map(|row| row * size_of::<f32>());
            // SAFETY: by the caller's promise; the tiles are lent.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    // A loop that crosses lines of the instruction cache otherwise takes 2 % longer.
                    ".p2align 6",
                    "2:",
                    third!(x 2), third!(y 0), products!(), ahead!(0),
                    third!(x 1), products!(), ahead!(1),
                    third!(y 1), products!(), ahead!(2),
                    third!(x 0), products!(), ahead!(3),
                    third!(y 0), products!(), ahead!(4),
                    third!(y 2), products!(), ahead!(5),
                    "add {x}, 6144",
                    "add {y}, 6144",
                    "add {passing}, 768",
                    beside!(), beside!(),
                    "dec {slabs}",
                    "jnz 2b",
                    "tilestored [{to} + {row}], tmm0",
                    "tilestored [{to} + {row} + 64], tmm1",
                    "add {to}, {lower}",
                    "tilestored [{to} + {row}], tmm2",
                    "tilestored [{to} + {row} + 64], tmm3",
                    x = inout(reg) x => _,
                    y = inout(reg) y => _,
                    slabs = inout(reg) slabs => _,
                    line = in(reg) 64usize,
                    to = inout(reg) to => _,
                    row = in(reg) row,
                    lower = in(reg) SIDE / 2 * row,
                    passing = inout(reg) passing => _,
                    beside = inout(reg) beside => _,
                    beside_row = in(reg) beside_row,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: the thread has tiles.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }

    /// Numbers in a register.
    const LANES: usize = 16;

    /// # Safety
    /// The machine has tiles; the lines reach so far, and there is a tile at each of the addresses.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn pack(Lines { from, lines, steps, right, scale }: Lines, to: [*mut u32; 3]) {
        // A register for each line or for each step: the first of them, and those of the last steps.
        let along_steps = from.column == 1;
        let parts = [0, LANES].map(|first| {
            let steps = steps.saturating_sub(first).min(LANES);
            let (registers, filled) = if along_steps { (lines, steps) } else { (steps, lines) };
            (from.at.wrapping_add(first * from.column), registers, (1u32 << filled) - 1)
        });
        let apart = if along_steps { from.row } else { from.column };
        let load = |part: usize, k: usize| {
            let (at, registers, mask) = parts[part];
            let mask = if k < registers { mask } else { 0 };
            // SAFETY: by the caller's promise; what is masked out is not read.
            unsafe { _mm512_maskz_loadu_ps(mask as __mmask16, at.wrapping_add(k * apart)) }
        };
        let scale = _mm512_set1_ps(scale);
        let upper = _mm512_set1_epi32(UPPER as i32);
        let write = |k: usize, x: __m512, y: __m512| {
            let (x, y) = (thirds(_mm512_mul_ps(x, scale)), thirds(_mm512_mul_ps(y, scale)));
            for ((x, y), to) in x.into_iter().zip(y).zip(to) {
                let words = _mm512_or_si512(_mm512_srli_epi32::<16>(x), _mm512_and_si512(y, upper));
                // What is written next is asked for beforehand.
                // SAFETY: tiles have 16 rows of 16 words.
                unsafe {
                    asm!("prefetchw [{}]", in(reg) to.wrapping_add(k * LANES + SLAB), options(nostack, readonly));
                    _mm512_storeu_si512(to.add(k * LANES).cast(), words);
                }
            }
        };
        if along_steps == right {
            let [x, y] = [0, 1].map(|part| transposed(std::array::from_fn(|k| load(part, k))));
            for k in 0..LANES {
                write(k, x[k], y[k]);
            }
        } else {
            for k in 0..LANES {
                write(k, load(0, k), load(1, k));
            }
        }
    }

    /// [`super::super::bf16x3::thirds`] of sixteen numbers; the last third's lower halves are not 0.
    #[target_feature(enable = "avx512f")]
    fn thirds(x: __m512) -> [__m512i; 3] {
        let upper = _mm512_set1_epi32(UPPER as i32);
        let round =
            |x| _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(HALF as i32)), upper);
        let a = round(x);
        let rest = _mm512_sub_ps(x, _mm512_castsi512_ps(a));
        let b = round(rest);
        [a, b, _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(b)))]
    }

    /// Sixteen registers as a matrix: pairs, then fours, then whole quarters change places.
    #[target_feature(enable = "avx512f")]
    fn transposed(x: [__m512; LANES]) -> [__m512; LANES] {
        let mut pairs = x;
        for k in (0..LANES).step_by(2) {
            pairs[k] = _mm512_unpacklo_ps(x[k], x[k + 1]);
            pairs[k + 1] = _mm512_unpackhi_ps(x[k], x[k + 1]);
        }
        let mut fours = pairs;
        for k in (0..LANES).step_by(4) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|r| _mm512_castps_pd(pairs[k + r]));
            let four = [
                _mm512_unpacklo_pd(a, c),
                _mm512_unpackhi_pd(a, c),
                _mm512_unpacklo_pd(b, d),
                _mm512_unpackhi_pd(b, d),
            ];
            for (to, four) in fours[k..].iter_mut().zip(four) {
                *to = _mm512_castpd_ps(four);
            }
        }
        // Quarter q of register 4 g + r is lines 4 g .. of step 4 q + r.
        let mut turned = fours;
        for r in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|g| fours[g + r]);
            let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
            let (ef, gh) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
            turned[r] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
            turned[4 + r] = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
            turned[8 + r] = _mm512_shuffle_f32x4::<0x88>(ef, gh);
            turned[12 + r] = _mm512_shuffle_f32x4::<0xdd>(ef, gh);
        }
        turned
    }
}
