//! Products of f32 on the matrix unit of x86 (AMX), which multiplies bf16.
//!
//! A number is cut into two of bf16, `x = high + low` up to 2⁻¹⁸ of it, and a product into three,
//!
//! ```text
//! a·b ≈ a_high·b_high + a_high·b_low + a_low·b_high
//! ```
//!
//! summed in f32 (Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
//! computations", 2019, §2). The unit multiplies sixteen times as fast as vectors of f32, so three products are five times as
//! fast as one. Errors are some 10 times those of a sum of f32, and below those of Winograd's algorithm.
//!
//! We write the instructions ourselves, as assembly, since the compiler's intrinsics for them are not stable. No other code
//! touches tile registers, and no compiler allocates them, so what one block of assembly leaves there the next one finds.

#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, unused_variables, reason = "no such unit there")
)]

/// The most rows of a tile.
pub(crate) const ROWS: usize = 2 * SIDE;

/// From one row of what a tile's sums are written to, to the next.
const STRIDE: usize = 2 * SIDE;

/// Rows, or columns, of one tile register.
const SIDE: usize = 16;

/// f32 that have to be readable behind a copy of the source: rows that a tile does not have are read nevertheless.
pub(crate) const SLACK: usize = (SIDE - 1) * SIDE;

/// The proof that the machine has the unit, and that the system lets this process use it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

/// A product tile whose operands are cut in two: `C[i][..] = Σ_b Σ_k A[a_b][i][k] · B[b_b][k][..]` over blocks of 32 channels.
pub(crate) struct SplitTile<'a> {
    /// Offsets into `a` and `b` of the high parts, one pair a block.
    pub list: &'a [(i32, i32)],
    /// The copied source, at the tile's first row: words of two channels each, 16 a row.
    pub a: *const f32,
    /// The other operand: for each block 16 rows of words of two channels each.
    pub b: *const f32,
    /// From one row of `b` to the next.
    pub b_row: usize,
    /// From the first 16 rows of `a` and the first 16 columns of `b` to the second ones.
    pub next: [usize; 2],
    /// The sums: rows 32 words apart, and all columns.
    pub c: *mut f32,
    /// Rows, up to [`ROWS`].
    pub n_rows: usize,
    /// Registers of columns: 1 or 2.
    pub vectors: usize,
    /// From the high parts of a block of `a` to its low parts.
    pub a_low: usize,
    /// The same for `b`.
    pub b_low: usize,
}

impl Amx {
    /// If the machine has the unit, for products of bf16, and the system grants it.
    pub fn detect() -> Option<Self> {
        static GRANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        GRANTED.get_or_init(granted).then_some(Self(()))
    }

    /// Makes this thread's tile registers ready; they are given back when the result is dropped.
    pub fn ready(self) -> Ready {
        // SAFETY: `self` exists only where the unit may be used.
        unsafe { configure() };
        Ready(std::marker::PhantomData)
    }
}

/// This thread's tile registers, ready for products.
#[derive(Debug)]
pub(crate) struct Ready(std::marker::PhantomData<*const ()>);

impl Drop for Ready {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: whoever made `self` configured the registers of this very thread, for it is not `Send`.
        unsafe {
            std::arch::asm!("tilerelease", options(nomem, nostack, preserves_flags));
        }
    }
}

impl Ready {
    /// Computes a tile.
    ///
    /// # Safety
    /// Every pointer must be valid for what the formula touches, `a` for whole registers of rows, and `c` for
    /// [`ROWS`] rows.
    #[inline]
    pub unsafe fn product(&self, t: &SplitTile<'_>) {
        // SAFETY: the pointers are valid, and the registers are ready.
        unsafe {
            match (t.n_rows > SIDE, t.vectors > 1) {
                (false, false) => product::<false, false>(t),
                (false, true) => product::<false, true>(t),
                (true, false) => product::<true, false>(t),
                (true, true) => product::<true, true>(t),
            }
        }
    }
}

/// Whether the unit is there and the system grants it to this process, which has to ask for it once.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn granted() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    /// Bits of the state components for tiles: their configuration and their data.
    const COMPONENTS: u64 = 1 << 17 | 1 << 18;
    /// `ARCH_REQ_XCOMP_PERM`, asks for a state component, and the component of tile data.
    const REQUEST: [libc::c_long; 2] = [0x1023, 18];
    /// Bits of leaf 7: products of bf16, and tiles.
    const FEATURES: u32 = 1 << 22 | 1 << 24;

    #[target_feature(enable = "xsave")]
    unsafe fn enabled() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { _xgetbv(0) }
    }

    if !is_x86_feature_detected!("xsave") || __cpuid(0).eax < 7 {
        return false;
    }
    if __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    // SAFETY: the processor has `xgetbv`, and the system uses it, since the feature is detected.
    if unsafe { enabled() } & COMPONENTS != COMPONENTS {
        return false;
    }
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST[0], REQUEST[1]) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn granted() -> bool {
    false
}

/// All eight tile registers: 16 rows of 64 bytes.
///
/// # Safety
/// The unit must be there, and granted.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe fn configure() {
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        column_bytes: [u16; 16],
        rows: [u8; 16],
    }
    static CONFIGURATION: Configuration = {
        let (mut column_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut i = 0;
        while i < 8 {
            (column_bytes[i], rows[i]) = (64, SIDE as u8);
            i += 1;
        }
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], column_bytes, rows }
    };
    // SAFETY: the configuration is a valid one of 64 bytes.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{}]",
            in(reg) &raw const CONFIGURATION,
            options(readonly, nostack, preserves_flags)
        );
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
unsafe fn configure() {}

/// Loads a register from rows at a distance of so many bytes.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! load {
    ($register:literal, $from:expr, $stride:expr) => {
        std::arch::asm!(
            concat!("tileloadd ", $register, ", [{from} + {stride}]"),
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(readonly, nostack, preserves_flags)
        )
    };
}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! multiply {
    ($sum:literal, $rows:literal, $columns:literal) => {
        std::arch::asm!(
            concat!("tdpbf16ps ", $sum, ", ", $rows, ", ", $columns),
            options(nomem, nostack, preserves_flags)
        )
    };
}
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! store {
    ($register:literal, $to:expr) => {
        std::arch::asm!(
            concat!("tilestored [{to} + {stride}], ", $register),
            to = in(reg) $to,
            stride = in(reg) STRIDE * size_of::<f32>(),
            options(nostack, preserves_flags)
        )
    };
}
/// All products of what is loaded.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
macro_rules! multiply_all {
    ($across:expr, $down:expr) => {
        multiply!("tmm0", "tmm4", "tmm6");
        if $across {
            multiply!("tmm1", "tmm4", "tmm7");
        }
        if $down {
            multiply!("tmm2", "tmm5", "tmm6");
        }
        if $across && $down {
            multiply!("tmm3", "tmm5", "tmm7");
        }
    };
}

/// The product of one or two registers of rows and of columns.
///
/// Registers 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
///
/// # Safety
/// As for [`Ready::product`].
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe fn product<const DOWN: bool, const ACROSS: bool>(t: &SplitTile<'_>) {
    let (row, line) = (SIDE * size_of::<f32>(), t.b_row * size_of::<f32>());
    let [a_next, b_next] = t.next;
    // SAFETY: the registers are ready, and all that is loaded and stored is valid.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nomem, nostack, preserves_flags)
        );
        for &(a, b) in t.list {
            let (a, b) = (t.a.offset(a as isize), t.b.offset(b as isize));
            let (a_low, b_low) = (a.wrapping_add(t.a_low), b.wrapping_add(t.b_low));
            load!("tmm4", a_low, row);
            load!("tmm6", b, line);
            if DOWN {
                load!("tmm5", a_low.wrapping_add(a_next), row);
            }
            if ACROSS {
                load!("tmm7", b.wrapping_add(b_next), line);
            }
            multiply_all!(ACROSS, DOWN);
            load!("tmm4", a, row);
            if DOWN {
                load!("tmm5", a.wrapping_add(a_next), row);
            }
            multiply_all!(ACROSS, DOWN);
            load!("tmm6", b_low, line);
            if ACROSS {
                load!("tmm7", b_low.wrapping_add(b_next), line);
            }
            multiply_all!(ACROSS, DOWN);
        }
        store!("tmm0", t.c);
        if ACROSS {
            store!("tmm1", t.c.wrapping_add(SIDE));
        }
        if DOWN {
            store!("tmm2", t.c.wrapping_add(SIDE * STRIDE));
        }
        if ACROSS && DOWN {
            store!("tmm3", t.c.wrapping_add(SIDE * STRIDE + SIDE));
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
unsafe fn product<const DOWN: bool, const ACROSS: bool>(_: &SplitTile<'_>) {
    unreachable!("there is no proof of the unit")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the tile, its sums are those of the cut numbers, up to rounding.
    #[test]
    fn tiles_match_plain_sums() {
        let Some(unit) = Amx::detect() else { return };
        let wide =
            |word: f32, half: usize| f64::from(half::bf16::from_bits((word.to_bits() >> (16 * half)) as u16));
        let word = |i: usize| {
            let bits = |x: usize| u32::from(half::bf16::from_f32((x % 97) as f32 / 31.0 - 1.5).to_bits());
            f32::from_bits(bits(i * 7919) | bits(i * 104_729 + 13) << 16)
        };
        let a: Vec<f32> = (0..4 * 40 * SIDE + SLACK).map(word).collect();
        for (n_rows, vectors) in [(1, 1), (16, 2), (17, 1), (32, 2), (23, 2), (5, 2)] {
            let width = vectors * SIDE;
            let b: Vec<f32> = (0..4 * SIDE * width).map(|i| word(i + 5)).collect();
            let list = [(0, 0), ((3 * SIDE) as i32, (2 * SIDE * width) as i32), (SIDE as i32, 0)];
            let (a_low, b_low) = (2 * 40 * SIDE, SIDE * width);
            let mut c = vec![f32::NAN; ROWS * STRIDE];
            let tile = SplitTile {
                list: &list,
                a: a.as_ptr(),
                b: b.as_ptr(),
                b_row: width,
                next: [SIDE * SIDE, SIDE],
                c: c.as_mut_ptr(),
                n_rows,
                vectors,
                a_low,
                b_low,
            };
            // SAFETY: the offsets stay inside the buffers, and there is slack behind the rows.
            unsafe { unit.ready().product(&tile) };
            for (i, j) in (0..n_rows).flat_map(|i| (0..width).map(move |j| (i, j))) {
                let mut sum = 0.0;
                for (a_at, b_at) in list.map(|(a, b)| (a as usize, b as usize)) {
                    for (k, half) in (0..SIDE).flat_map(|k| [(k, 0), (k, 1)]) {
                        let x = |low: usize| wide(a[a_at + low * a_low + i * SIDE + k], half);
                        let y = |low: usize| wide(b[b_at + low * b_low + k * width + j], half);
                        sum += x(0) * y(0) + x(0) * y(1) + x(1) * y(0);
                    }
                }
                let got = f64::from(c[i * STRIDE + j]);
                assert!((got - sum).abs() < 1e-4, "{n_rows} rows, {vectors} vectors, {i} {j}: {got} {sum}");
            }
        }
    }
}
