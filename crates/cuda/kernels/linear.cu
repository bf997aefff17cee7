// What linear layers need beside their products: biases, unit length, prototypes. Written for the type REAL.

// z[rows][C] += bias[C].
KERNEL(add_bias, 4)(REAL* z, const float* bias, int total, int vectors) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  float f[8], b[8];
  widen(vector_at((const REAL*)z, i), f);
  load_eight(bias + (i % vectors) * 8, b);
UNROLL
  for (int j = 0; j < 8; j++) f[j] += b[j];
  store_vector(z, i, f);
}

// gradient[C] = Σ over rows of dz[rows][C]; a block a tile of channels.
KERNEL(bias_gradient, 4)(const REAL* dz, float* gradient, int rows, int vectors, int tile) {
  const Place at(vectors, tile);
  float sums[1][8];
UNROLL
  for (int j = 0; j < 8; j++) sums[0][j] = 0;
  if (at.active) {
UNROLL_4
    for (int row = at.row; row < rows; row += at.rows) {
      float f[8];
      widen(vector_at(dz, (size_t)row * vectors + at.column), f);
UNROLL
      for (int j = 0; j < 8; j++) sums[0][j] += f[j];
    }
  }
  block_sums<1>(at, sums, gradient, vectors);
}

// unit = z / max(|z|, 1e-12), a warp a row; lengths[row] is the divisor. exact: unit in f32 too, or null.
KERNEL(unit_length, 4)(const REAL* z, REAL* unit, float* exact, float* lengths, int rows, int channels) {
  const int row = (int)blockIdx.x * (THREADS / 32) + (int)(threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const size_t first = (size_t)row * channels;
  float sum = 0;
  for (int c = lane; c < channels; c += 32) {
    const float x = widen(z[first + c]);
    sum = fmaf(x, x, sum);
  }
  const float length = sqrtf(warp_sum(sum)), divisor = length <= SHORTEST ? SHORTEST : length;
  if (!lane) lengths[row] = divisor;
  for (int c = lane; c < channels; c += 32) {
    const float x = widen(z[first + c]) / divisor;
    narrow(x, unit + first + c);
    if (exact) exact[first + c] = x;
  }
}

// dz = (d - unit·(d·unit)) / length; where the length was replaced by 1e-12, dz = d / length.
KERNEL(unit_length_backward, 4)(const REAL* d, const REAL* unit, const float* lengths, REAL* dz, int rows,
                                int channels) {
  const int row = (int)blockIdx.x * (THREADS / 32) + (int)(threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const size_t first = (size_t)row * channels;
  float sum = 0;
  for (int c = lane; c < channels; c += 32) sum = fmaf(widen(d[first + c]), widen(unit[first + c]), sum);
  const float length = lengths[row], along = length > SHORTEST ? warp_sum(sum) : 0.f;
  for (int c = lane; c < channels; c += 32)
    narrow((widen(d[first + c]) - widen(unit[first + c]) * along) / length, dz + first + c);
}

// Rows of f32 weights to unit length in place, and their copy in REAL, if there is one.
KERNEL(prototype_normalise, 4)(float* weights, REAL* copy, int rows, int channels) {
  const int row = (int)blockIdx.x * (THREADS / 32) + (int)(threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= rows) return;
  const size_t first = (size_t)row * channels;
  float sum = 0;
  for (int c = lane; c < channels; c += 32) sum = fmaf(weights[first + c], weights[first + c], sum);
  const float length = sqrtf(warp_sum(sum)), divisor = length <= SHORTEST ? SHORTEST : length;
  for (int c = lane; c < channels; c += 32) {
    const float x = weights[first + c] / divisor;
    weights[first + c] = x;
    if (copy) narrow(x, copy + first + c);
  }
}

// to += from, and fills.
KERNEL(add_into, 4)(REAL* to, const REAL* from, int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  float f[8], g[8];
  widen(vector_at((const REAL*)to, i), f);
  widen(vector_at(from, i), g);
UNROLL
  for (int j = 0; j < 8; j++) f[j] += g[j];
  store_vector(to, i, f);
}
KERNEL(fill, 4)(REAL* to, float value, int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  const float f[8] = {value, value, value, value, value, value, value, value};
  store_vector(to, i, f);
}
