//! Vector kernels over rows: the inner loops of every solver.
//!
//! They exist because the compiler may not reorder floating-point sums and has no vector exponential, and
//! because a crate built for the oldest CPU should still use the newest one's registers. Each kernel is one safe
//! body ([`body`]) that keeps [`LANES`] independent partial sums. The body is compiled three times (portable,
//! AVX2 with FMA, AVX-512) and chosen at run time. The order of every sum is written in the body, so the two FMA
//! variants give the same bits.

mod body;
mod lane;

pub(crate) use lane::Lane;

/// Independent partial sums a kernel keeps: two AVX-512 registers of `f32`, so that additions need not wait.
const LANES: usize = 32;

/// Rows that one call of the fused kernels takes, so that the vectors they share are read once for all of them.
pub(crate) const ROWS: usize = 4;

/// Elements of each streamed row that [`dot_then_axpy`] takes before it turns to the next row; a multiple of
/// [`LANES`].
const STRIDE: usize = 512;

/// Bytes of a matrix that the caches of a usual machine keep between passes.
const CACHE: usize = 16 << 20;

/// Bytes that memory hands out at a time.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// The instruction set a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What the crate was compiled for; no fused multiply-add.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The widest set this CPU has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::Avx512.available() {
                return Self::Avx512;
            }
            if Self::Avx2.available() {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Whether this CPU can run it.
    fn available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
            }
        }
    }
}

/// The smallest and the largest of some numbers, and whether all are finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range<T> {
    pub(crate) min: T,
    pub(crate) max: T,
    pub(crate) finite: bool,
}

impl<T: Lane> Range<T> {
    /// The range of the numbers of both.
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            min: other.min.smaller(self.min),
            max: other.max.larger(self.max),
            finite: self.finite && other.finite,
        }
    }
}

/// Declares the three compilations of a body and the function that chooses between them.
macro_rules! kernels {
    ($( $(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?; )*) => {
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(
                #[target_feature(enable = "avx2,fma")]
                pub(super) fn $name<T: Lane>($($arg: $ty),*) $(-> $ret)? { body::$name::<T, true>($($arg),*) }
            )*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                pub(super) fn $name<T: Lane>($($arg: $ty),*) $(-> $ret)? { body::$name::<T, true>($($arg),*) }
            )*
        }
        $(
            $(#[$doc])*
            #[inline]
            pub(crate) fn $name<T: Lane>(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
                match isa {
                    Isa::Portable => body::$name::<T, false>($($arg),*),
                    // SAFETY: an `Isa` other than `Portable` is made by `Isa::detect` (or by tests that ask
                    // `available` first) only when this CPU has the features that the function was compiled for.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => unsafe { avx2::$name($($arg),*) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => unsafe { avx512::$name($($arg),*) },
                }
            }
        )*
    };
}

kernels! {
    /// Smallest and largest element.
    fn range(row: &[T]) -> Range<T>;
    /// `values = exp((values - shift) · scale)`.
    fn exp_shifted(values: &mut [T], shift: T, scale: T);
    /// `out[j] = exp((row[j] - shift) · scale)`.
    fn exp_of(row: &[T], shift: T, scale: T, out: &mut [T]);
    /// `sums += Σ_r rows_r`, over any number of rows laid out one after the other.
    fn add_rows(rows: &[T], sums: &mut [T]);
    /// `Σ_j row[j] · weights[j]`.
    fn dot(row: &[T], weights: &[T]) -> T;
    /// `sums += Σ_r factors_r · rows_r` of four rows.
    fn axpy4(rows: [&[T]; ROWS], factors: [T; ROWS], sums: &mut [T]);
    /// Adds `row[j] · weights[j]` to partial sums, of which [`dot`] is the total. Only the last of several parts of a
    /// row may have a length that is no multiple of [`LANES`].
    fn dot_part(row: &[T], weights: &[T], partial: &mut [T; LANES]);
    /// `sums += factor · row`.
    fn axpy(row: &[T], factor: T, sums: &mut [T]);
    /// `row = row · weights · factor`.
    fn scale_row(row: &mut [T], weights: &[T], factor: T);
    /// `out[j] = offsets[j] - row[j] · scale` in double precision; gives the largest.
    fn exponents(row: &[T], scale: f64, offsets: &[f64], out: &mut [f64]) -> f64;
    /// `out[j] = exp(offsets[j] - row[j] · scale + shift)` in double precision.
    fn exp_affine(row: &[T], scale: f64, offsets: &[f64], shift: f64, out: &mut [f64]);
    /// As [`exp_affine`], rounded to the row's type.
    fn exp_affine_narrow(row: &[T], scale: f64, offsets: &[f64], shift: f64, out: &mut [T]);
    /// `sums += part`.
    fn add_wide(part: &[T], sums: &mut [f64]);
    /// `sums += (row - x)²`.
    fn add_squares(row: &[T], x: T, sums: &mut [T]);
    /// `values = exp(values - shift)`; gives the sum.
    fn exp_sum(values: &mut [T], shift: T) -> T;
}

/// One pass over rows that adds each, times a factor that depends on its dot product with `weights`, to `sums`.
/// Rows are taken in groups of [`ROWS`] (the last few one by one); `factors(first row, products, factors)` gives a
/// group's factors. Of `streamed` rows (see [`beyond_cache`]) the next group is called from memory while one is
/// worked on in cache, so that the memory never waits.
pub(crate) fn dot_then_axpy<T: Lane>(
    isa: Isa,
    streamed: bool,
    rows: &[T],
    weights: &[T],
    sums: &mut [T],
    factors: &mut impl FnMut(usize, &[T], &mut [T]),
) {
    let width = weights.len();
    let stride = if streamed { STRIDE } else { width };
    let mut groups = rows.chunks_exact(ROWS * width).peekable();
    let mut first = 0;
    while let Some(group) = groups.next() {
        let next = groups.peek().copied().filter(|_| streamed).unwrap_or(&[]);
        let (soon, later) = next.split_at(next.len() / 2);
        let group = rows_of(group, width);
        let mut partial = [[T::ZERO; LANES]; ROWS];
        for part in parts(width, stride) {
            for (row, partial) in group.iter().zip(&mut partial) {
                dot_part(isa, &row[part.clone()], &weights[part.clone()], partial);
            }
            prefetch(soon, width, &part);
        }
        let mut group_factors = [T::ZERO; ROWS];
        factors(first, &partial.each_ref().map(body::fold), &mut group_factors);
        for part in parts(width, stride) {
            let group = group.map(|row| &row[part.clone()]);
            axpy4(isa, group, group_factors, &mut sums[part.clone()]);
            prefetch(later, width, &part);
        }
        first += ROWS;
    }
    for row in rows[first * width..].chunks_exact(width) {
        let mut factor = [T::ZERO];
        factors(first, &[dot(isa, row, weights)], &mut factor);
        axpy(isa, row, factor[0], sums);
        first += 1;
    }
}

/// Whether a matrix of so many elements must be taken to come from memory in each pass.
pub(crate) fn beyond_cache<T>(n_elements: usize) -> bool {
    n_elements * size_of::<T>() > CACHE
}

/// Cuts the columns into pieces.
fn parts(width: usize, stride: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..width).step_by(stride).map(move |from| from..width.min(from + stride))
}

/// Calls some columns of some rows into the second-level cache.
#[inline]
fn prefetch<T>(rows: &[T], width: usize, part: &std::ops::Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    for row in rows.chunks_exact(width) {
        for line in row[part.clone()].chunks(CACHE_LINE / size_of::<T>()) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a prefetch reads nothing that a program could see, and its address lies within a slice.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, width, part);
}

fn rows_of<T>(group: &[T], width: usize) -> [&[T]; ROWS] {
    std::array::from_fn(|r| &group[r * width..(r + 1) * width])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isas() -> Vec<Isa> {
        #[cfg(target_arch = "x86_64")]
        let all = [Isa::Portable, Isa::Avx2, Isa::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let all = [Isa::Portable];
        all.into_iter().filter(|isa| isa.available()).collect()
    }

    fn wave(length: usize, phase: f64) -> Vec<f64> {
        (0..length).map(|i| (i as f64 * 0.737 + phase).sin() * 3.0).collect()
    }

    fn single(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&v| v as f32).collect()
    }

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        for isa in isas() {
            let arguments: Vec<f64> = (-70_000..70_000).map(|i| f64::from(i) * 0.01 + 0.003).collect();
            let mut values = arguments.clone();
            exp_shifted(isa, &mut values, 0.0, 1.0);
            for (&x, &y) in arguments.iter().zip(&values) {
                let exact = x.exp();
                assert!((y - exact).abs() <= 2.0 * f64::EPSILON * exact, "{isa:?} f64 exp({x}) = {y}");
            }
            let arguments: Vec<f32> = (-87_000..88_000).map(|i| i as f32 * 0.001).collect();
            let mut values = arguments.clone();
            exp_shifted(isa, &mut values, 0.0, 1.0);
            for (&x, &y) in arguments.iter().zip(&values) {
                let exact = f64::from(x).exp();
                let error = (f64::from(y) - exact).abs();
                assert!(error <= 2.0 * f64::from(f32::EPSILON) * exact, "{isa:?} f32 exp({x}) = {y}");
            }
        }
    }

    #[test]
    fn exponential_is_zero_far_below_and_finite_far_above() {
        for isa in isas() {
            let mut values = [f32::NEG_INFINITY, f32::MIN, -1e4, -88.0, 0.0, 89.0, f32::MAX, f32::INFINITY];
            exp_shifted(isa, &mut values, 0.0, 1.0);
            assert_eq!(values[..5], [0.0, 0.0, 0.0, 0.0, 1.0]);
            assert!(values[5..].iter().all(|v| v.is_finite() && *v > 1e38));
            let mut values = [f64::NEG_INFINITY, f64::MIN, -710.0, 0.0, 800.0, f64::INFINITY];
            exp_shifted(isa, &mut values, 0.0, 1.0);
            assert_eq!(values[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(values[4..].iter().all(|v| v.is_finite() && *v > 1e307));
        }
    }

    #[test]
    fn range_finds_extremes_and_what_is_not_finite() {
        for isa in isas() {
            for length in [1, 2, 15, 16, 17, 33, 100] {
                let values = wave(length, 0.1);
                let got = range(isa, &values);
                assert_eq!(got.max, values.iter().copied().fold(f64::MIN, f64::max));
                assert_eq!(got.min, values.iter().copied().fold(f64::MAX, f64::min));
                assert!(got.finite);
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = single(&values);
                    values[length / 2] = bad;
                    assert!(!range(isa, &values).finite, "{isa:?} {length} {bad}");
                }
                assert!(range(isa, &vec![f32::MAX; length]).finite);
            }
        }
    }

    #[test]
    fn sums_and_updates_agree_with_plain_loops_on_odd_sizes() {
        for isa in isas() {
            for length in [0, 1, 7, 15, 16, 17, 31, 32, 47, 129] {
                let rows: Vec<Vec<f64>> = (0..ROWS).map(|r| wave(length, r as f64)).collect();
                let weights = wave(length, 9.0);
                let factors = [0.5, -1.25, 2.0, 0.125];
                let expected: Vec<f64> =
                    rows.iter().map(|row| row.iter().zip(&weights).map(|(a, b)| a * b).sum()).collect();
                let views: [&[f64]; ROWS] = std::array::from_fn(|r| rows[r].as_slice());
                for (row, want) in rows.iter().zip(&expected) {
                    assert!((dot(isa, row, &weights) - want).abs() < 1e-11, "{isa:?} dot {length}");
                }

                let mut sums = wave(length, 4.0);
                let want: Vec<f64> = (0..length)
                    .map(|j| sums[j] + (0..ROWS).map(|r| factors[r] * rows[r][j]).sum::<f64>())
                    .collect();
                let mut one_by_one = sums.clone();
                axpy4(isa, views, factors, &mut sums);
                for (row, factor) in rows.iter().zip(factors) {
                    axpy(isa, row, factor, &mut one_by_one);
                }
                for j in 0..length {
                    assert!((sums[j] - want[j]).abs() < 1e-12 && (one_by_one[j] - want[j]).abs() < 1e-12);
                }

                let flat: Vec<f64> = rows.concat();
                let mut sums = vec![1.0; length];
                add_rows(isa, &flat, &mut sums);
                for j in 0..length {
                    let want = 1.0 + rows.iter().map(|row| row[j]).sum::<f64>();
                    assert!((sums[j] - want).abs() < 1e-12, "{isa:?} add_rows {length}");
                }

                let mut scaled = rows[0].clone();
                scale_row(isa, &mut scaled, &weights, 0.5);
                let mut powers = vec![0.0; length];
                let top = exponents(isa, &rows[0], 2.0, &weights, &mut powers);
                for j in 0..length {
                    assert!((scaled[j] - rows[0][j] * weights[j] * 0.5).abs() < 1e-14);
                    assert!((powers[j] - (weights[j] - 2.0 * rows[0][j])).abs() < 1e-14);
                    assert!(powers[j] <= top);
                }
                let (mut powered, mut squares) = (vec![0.0; length], weights.clone());
                exp_affine(isa, &rows[0], 2.0, &weights, -0.25, &mut powered);
                add_squares(isa, &rows[0], 0.75, &mut squares);
                for j in 0..length {
                    let want = (powers[j] - 0.25).exp();
                    assert!((powered[j] - want).abs() <= 1e-13 * want);
                    assert!((squares[j] - weights[j] - (rows[0][j] - 0.75).powi(2)).abs() < 1e-13);
                }
                let want: f64 = powers.iter().map(|x| (x - 0.5).exp()).sum();
                let got = exp_sum(isa, &mut powers, 0.5);
                assert!((got - want).abs() <= 1e-13 * want.max(1.0), "{isa:?} exp_sum {length}");
            }
        }
    }

    #[test]
    fn the_fused_pass_adds_every_row_and_streaming_changes_no_bit() {
        for isa in isas() {
            for (n, width) in [(1, 3), (4, 40), (7, 511), (13, 1100), (8, 1024)] {
                let rows = wave(n * width, 0.2);
                let weights = wave(width, 1.7);
                let pass = |streamed: bool| {
                    let (mut sums, mut seen) = (vec![0.0; width], Vec::new());
                    dot_then_axpy(
                        isa,
                        streamed,
                        &rows,
                        &weights,
                        &mut sums,
                        &mut |first, products, factors| {
                            assert_eq!(first, seen.len());
                            seen.extend_from_slice(products);
                            factors.iter_mut().zip(products).for_each(|(factor, p)| *factor = 0.5 * p + 1.0);
                        },
                    );
                    (sums, seen)
                };
                let (sums, seen) = pass(false);
                assert_eq!((&sums, &seen), (&pass(true).0, &pass(true).1), "{isa:?} {n} x {width}");
                assert_eq!(seen.len(), n);
                let mut want = vec![0.0; width];
                for (row, got) in rows.chunks_exact(width).zip(&seen) {
                    let product: f64 = row.iter().zip(&weights).map(|(x, w)| x * w).sum();
                    assert!((product - got).abs() < 1e-9 * width as f64);
                    want.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * (0.5 * product + 1.0));
                }
                assert!(sums.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-8 * width as f64));
            }
        }
    }

    #[test]
    fn fused_instruction_sets_agree_to_the_bit() {
        let fused: Vec<Isa> = isas().into_iter().filter(|&isa| isa != Isa::Portable).collect();
        let row = single(&wave(1003, 0.3));
        let weights = single(&wave(1003, 0.9));
        let outcomes: Vec<(u32, Vec<f32>)> = fused
            .iter()
            .map(|&isa| {
                let mut values = row.clone();
                let sum = exp_sum(isa, &mut values, 1.5) + dot(isa, &row, &weights);
                (sum.to_bits(), values)
            })
            .collect();
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
