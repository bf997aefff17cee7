//! The bodies of the kernels: plain loops over [`LANES`] elements at a time, always inlined into the functions
//! that [`super`] compiles for each instruction set.

use super::{LANES, Lane, ROWS, Range};

/// Adds the partial sums pairwise: lane l with lane l + half, halving until one is left.
#[inline(always)]
fn fold<T: Lane>(mut lanes: [T; LANES]) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = lanes[l] + lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn range<T: Lane, const FMA: bool>(row: &[T]) -> Range<T> {
    let (mut low, mut high) = ([T::INFINITY; LANES], [T::NEG_INFINITY; LANES]);
    // x·0 is 0 for a finite x and NaN otherwise, and NaN stays in a sum.
    let mut tell = [T::ZERO; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            low[l] = chunk[l].smaller(low[l]);
            high[l] = chunk[l].larger(high[l]);
            tell[l] += chunk[l] * T::ZERO;
        }
    }
    for (l, &x) in tail.iter().enumerate() {
        low[l] = x.smaller(low[l]);
        high[l] = x.larger(high[l]);
        tell[l] += x * T::ZERO;
    }
    let (mut min, mut max) = (low[0], high[0]);
    for l in 1..LANES {
        min = low[l].smaller(min);
        max = high[l].larger(max);
    }
    Range { min, max, finite: fold(tell) == T::ZERO }
}

#[inline(always)]
pub(super) fn exp_shifted<T: Lane, const FMA: bool>(values: &mut [T], shift: T, scale: T) {
    for value in values {
        *value = ((*value - shift) * scale).exp::<FMA>();
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
pub(super) fn dot4<T: Lane, const FMA: bool>(rows: [&[T]; ROWS], weights: &[T]) -> [T; ROWS] {
    let (weight_chunks, weight_tail) = weights.as_chunks::<LANES>();
    let n = weight_chunks.len();
    // Equal lengths, taken once, spare the loop its bound checks.
    let [c0, c1, c2, c3] = rows.map(|row| &row.as_chunks::<LANES>().0[..n]);
    let mut sums = [[T::ZERO; LANES]; ROWS];
    for i in 0..n {
        let w = &weight_chunks[i];
        for l in 0..LANES {
            sums[0][l] = c0[i][l].madd::<FMA>(w[l], sums[0][l]);
        }
        for l in 0..LANES {
            sums[1][l] = c1[i][l].madd::<FMA>(w[l], sums[1][l]);
        }
        for l in 0..LANES {
            sums[2][l] = c2[i][l].madd::<FMA>(w[l], sums[2][l]);
        }
        for l in 0..LANES {
            sums[3][l] = c3[i][l].madd::<FMA>(w[l], sums[3][l]);
        }
    }
    for r in 0..ROWS {
        for (l, (&x, &w)) in rows[r][n * LANES..].iter().zip(weight_tail).enumerate() {
            sums[r][l] = x.madd::<FMA>(w, sums[r][l]);
        }
    }
    sums.map(fold)
}

#[inline(always)]
pub(super) fn dot<T: Lane, const FMA: bool>(row: &[T], weights: &[T]) -> T {
    let ((chunks, tail), (weight_chunks, weight_tail)) =
        (row.as_chunks::<LANES>(), weights.as_chunks::<LANES>());
    let mut sums = [T::ZERO; LANES];
    for (chunk, w) in chunks.iter().zip(weight_chunks) {
        for l in 0..LANES {
            sums[l] = chunk[l].madd::<FMA>(w[l], sums[l]);
        }
    }
    for (l, (&x, &w)) in tail.iter().zip(weight_tail).enumerate() {
        sums[l] = x.madd::<FMA>(w, sums[l]);
    }
    fold(sums)
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
    let mut high = [f64::NEG_INFINITY; LANES];
    let chunks = n / LANES * LANES;
    let mut j = 0;
    while j < chunks {
        for l in 0..LANES {
            let x = offsets[j + l] - row[j + l].widen() * scale;
            out[j + l] = x;
            high[l] = x.larger(high[l]);
        }
        j += LANES;
    }
    for l in 0..n - chunks {
        let x = offsets[chunks + l] - row[chunks + l].widen() * scale;
        out[chunks + l] = x;
        high[l] = x.larger(high[l]);
    }
    high.into_iter().fold(f64::NEG_INFINITY, |top, x| x.larger(top))
}

#[inline(always)]
pub(super) fn exp_affine<T: Lane, const FMA: bool>(row: &[T], scale: T, offsets: &[T], out: &mut [T]) {
    for ((out, &x), &offset) in out.iter_mut().zip(row).zip(offsets) {
        *out = (offset - x * scale).exp::<FMA>();
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
    let mut sums = [T::ZERO; LANES];
    let (chunks, tail) = values.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            chunk[l] = (chunk[l] - shift).exp::<FMA>();
            sums[l] += chunk[l];
        }
    }
    for (l, value) in tail.iter_mut().enumerate() {
        *value = (*value - shift).exp::<FMA>();
        sums[l] += *value;
    }
    fold(sums)
}
