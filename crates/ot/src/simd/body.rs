//! The bodies of the kernels: plain loops over [`LANES`] elements at a time, always inlined into the functions
//! that [`super`] compiles for each instruction set.

use super::{LANES, Lane, ROWS, Range};

/// Adds the partial sums pairwise: lane l with lane l + half, halving until one is left.
///
/// Not inlined: compilers would carry its order of pairs into the loops before it, and fill a quarter of each vector.
#[inline(never)]
pub(super) fn fold<T: Lane>(lanes: &[T; LANES]) -> T {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Elements that the end of a row is taken by, as long as there are so many: single ones would take longer than all before
/// them in rows of some thousands.
const PART: usize = 8;

/// Combines all elements into [`LANES`] partial results. One such loop at a time keeps its lanes in registers;
/// several interleaved ones do not become vector instructions. A macro, because a closure would not be compiled for
/// the caller's instruction set.
macro_rules! gather {
    ($row:expr, $start:expr, |$x:ident, $lane:ident| $combined:expr) => {{
        let mut lanes = [$start; LANES];
        let (chunks, tail) = $row.as_chunks::<LANES>();
        for chunk in chunks {
            for l in 0..LANES {
                let ($x, $lane) = (chunk[l], lanes[l]);
                lanes[l] = $combined;
            }
        }
        let (parts, rest) = tail.as_chunks::<PART>();
        for (p, part) in parts.iter().enumerate() {
            let lanes = &mut lanes[p * PART..][..PART];
            for l in 0..PART {
                let ($x, $lane) = (part[l], lanes[l]);
                lanes[l] = $combined;
            }
        }
        for (&$x, lane) in rest.iter().zip(&mut lanes[parts.len() * PART..]) {
            let $lane = *lane;
            *lane = $combined;
        }
        lanes
    }};
}

/// The extreme of some lanes, by the comparison of that name.
macro_rules! extreme {
    ($lanes:expr, $compare:ident) => {{
        let lanes = $lanes;
        let mut extreme = lanes[0];
        for lane in lanes {
            extreme = lane.$compare(extreme);
        }
        extreme
    }};
}

/// Elements that fit the innermost cache: kernels of several loops take so many at a time.
const BLOCK: usize = 2048;

#[inline(always)]
pub(super) fn range<T: Lane, const FMA: bool>(row: &[T]) -> Range<T> {
    let mut all = Range { min: T::INFINITY, max: T::NEG_INFINITY, finite: true };
    for block in row.chunks(BLOCK) {
        let low = gather!(block, T::INFINITY, |x, low| x.smaller(low));
        let high = gather!(block, T::NEG_INFINITY, |x, high| x.larger(high));
        // x·0 is 0 for a finite x and NaN otherwise, and NaN stays in a sum.
        let tell = gather!(block, T::ZERO, |x, tell| tell + x * T::ZERO);
        all.min = extreme!(low, smaller).smaller(all.min);
        all.max = extreme!(high, larger).larger(all.max);
        all.finite = all.finite && fold(&tell) == T::ZERO;
    }
    all
}

#[inline(always)]
pub(super) fn exp_shifted<T: Lane, const FMA: bool>(values: &mut [T], shift: T, scale: T) {
    for value in values {
        *value = ((*value - shift) * scale).exp::<FMA>();
    }
}

#[inline(always)]
pub(super) fn exp_of<T: Lane, const FMA: bool>(row: &[T], shift: T, scale: T, out: &mut [T]) {
    for (out, &x) in out.iter_mut().zip(row) {
        *out = ((x - shift) * scale).exp::<FMA>();
    }
}

#[inline(always)]
pub(super) fn add_rows<T: Lane, const FMA: bool>(rows: &[T], sums: &mut [T]) {
    let width = sums.len();
    if width == 0 {
        return;
    }
    let mut groups = rows.chunks_exact(ROWS * width);
    for group in &mut groups {
        let (upper, lower) = group.split_at(2 * width);
        let ((r0, r1), (r2, r3)) = (upper.split_at(width), lower.split_at(width));
        for ((((sum, &a), &b), &c), &d) in sums.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
            *sum += (a + b) + (c + d);
        }
    }
    for row in groups.remainder().chunks_exact(width) {
        for (sum, &a) in sums.iter_mut().zip(row) {
            *sum += a;
        }
    }
}

#[inline(always)]
pub(super) fn dot<T: Lane, const FMA: bool>(row: &[T], weights: &[T]) -> T {
    let mut sums = [T::ZERO; LANES];
    dot_part::<T, FMA>(row, weights, &mut sums);
    fold(&sums)
}

#[inline(always)]
pub(super) fn dot_part<T: Lane, const FMA: bool>(row: &[T], weights: &[T], partial: &mut [T; LANES]) {
    let ((chunks, tail), (weight_chunks, weight_tail)) =
        (row.as_chunks::<LANES>(), weights.as_chunks::<LANES>());
    let mut sums = *partial;
    for (chunk, w) in chunks.iter().zip(weight_chunks) {
        for l in 0..LANES {
            sums[l] = chunk[l].madd::<FMA>(w[l], sums[l]);
        }
    }
    let ((parts, rest), (weight_parts, weight_rest)) =
        (tail.as_chunks::<PART>(), weight_tail.as_chunks::<PART>());
    for (p, (part, w)) in parts.iter().zip(weight_parts).enumerate() {
        let sums = &mut sums[p * PART..][..PART];
        for l in 0..PART {
            sums[l] = part[l].madd::<FMA>(w[l], sums[l]);
        }
    }
    for ((&x, &w), sum) in rest.iter().zip(weight_rest).zip(&mut sums[parts.len() * PART..]) {
        *sum = x.madd::<FMA>(w, *sum);
    }
    *partial = sums;
}

#[inline(always)]
pub(super) fn axpy4<T: Lane, const FMA: bool>(rows: [&[T]; ROWS], factors: [T; ROWS], sums: &mut [T]) {
    let [r0, r1, r2, r3] = rows;
    let [f0, f1, f2, f3] = factors;
    for ((((sum, &a), &b), &c), &d) in sums.iter_mut().zip(r0).zip(r1).zip(r2).zip(r3) {
        *sum = d.madd::<FMA>(f3, c.madd::<FMA>(f2, b.madd::<FMA>(f1, a.madd::<FMA>(f0, *sum))));
    }
}

#[inline(always)]
pub(super) fn axpy<T: Lane, const FMA: bool>(row: &[T], factor: T, sums: &mut [T]) {
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum = x.madd::<FMA>(factor, *sum);
    }
}

#[inline(always)]
pub(super) fn scale_row<T: Lane, const FMA: bool>(row: &mut [T], weights: &[T], factor: T) {
    for (x, &w) in row.iter_mut().zip(weights) {
        *x = (*x * w) * factor;
    }
}

#[inline(always)]
pub(super) fn exponents<T: Lane, const FMA: bool>(
    row: &[T],
    scale: f64,
    offsets: &[f64],
    out: &mut [f64],
) -> f64 {
    let n = out.len();
    let (row, offsets) = (&row[..n], &offsets[..n]);
    for ((out, &x), &offset) in out.iter_mut().zip(row).zip(offsets) {
        *out = offset - x.widen() * scale;
    }
    let high = gather!(out, f64::NEG_INFINITY, |x, high| x.larger(high));
    extreme!(high, larger)
}

#[inline(always)]
pub(super) fn exp_affine<T: Lane, const FMA: bool>(
    row: &[T],
    scale: f64,
    offsets: &[f64],
    shift: f64,
    out: &mut [f64],
) {
    exp_affine_into::<T, f64, FMA>(row, scale, offsets, shift, out);
}

#[inline(always)]
pub(super) fn exp_affine_narrow<T: Lane, const FMA: bool>(
    row: &[T],
    scale: f64,
    offsets: &[f64],
    shift: f64,
    out: &mut [T],
) {
    exp_affine_into::<T, T, FMA>(row, scale, offsets, shift, out);
}

#[inline(always)]
fn exp_affine_into<T: Lane, O: Lane, const FMA: bool>(
    row: &[T],
    scale: f64,
    offsets: &[f64],
    shift: f64,
    out: &mut [O],
) {
    for ((out, &x), &offset) in out.iter_mut().zip(row).zip(offsets) {
        *out = O::narrow(<f64 as Lane>::exp::<FMA>((offset - x.widen() * scale) + shift));
    }
}

#[inline(always)]
pub(super) fn add_wide<T: Lane, const FMA: bool>(part: &[T], sums: &mut [f64]) {
    for (sum, &x) in sums.iter_mut().zip(part) {
        *sum += x.widen();
    }
}

#[inline(always)]
pub(super) fn add_squares<T: Lane, const FMA: bool>(row: &[T], x: T, sums: &mut [T]) {
    for (sum, &y) in sums.iter_mut().zip(row) {
        let difference = y - x;
        *sum = difference.madd::<FMA>(difference, *sum);
    }
}

#[inline(always)]
pub(super) fn exp_sum<T: Lane, const FMA: bool>(values: &mut [T], shift: T) -> T {
    for value in values.iter_mut() {
        *value = (*value - shift).exp::<FMA>();
    }
    fold(&gather!(values, T::ZERO, |x, sum| sum + x))
}
