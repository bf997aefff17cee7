// The stem's batch norm, ReLU and 3x3 max pooling of stride 2 and padding 1 in one pass, and global average pooling.
// Written for the type REAL.
//
// The rectified map is never stored. For each output the window's position of the maximum, 0 to 8 row by row, is kept
// in 4 bits; a position that is not positive passes no gradient.

// out[n][ceil(h/2)][ceil(w/2)][C]; positions: one u32 a vector of out, or null.
KERNEL(norm_pool, 4)(const REAL* y, const float* state, REAL* out, u32* positions, int height, int width, int vectors,
                     int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  const int out_width = (width + 1) / 2, out_height = (height + 1) / 2;
  const u32 pixel = (u32)i / (u32)vectors, line = pixel / (u32)out_width, image = line / (u32)out_height;
  const int v = i - (int)pixel * vectors, ow = (int)(pixel - line * out_width), oh = (int)(line - image * out_height);
  const int channels = vectors * 8;
  float a[8], b[8], best[8];
  u32 where[8];
  load_eight(state + 2 * channels + v * 8, a);
  load_eight(state + 3 * channels + v * 8, b);
UNROLL
  for (int j = 0; j < 8; j++) {
    best[j] = -1.f;
    where[j] = 0;
  }
UNROLL
  for (int k = 0; k < 9; k++) {
    const int h = oh * 2 - 1 + k / 3, w = ow * 2 - 1 + k % 3;
    if (h >= 0 && w >= 0 && h < height && w < width) {
      float f[8];
      widen(cached_vector_at(y, ((size_t)(image * height + h) * width + w) * vectors + v), f);
UNROLL
      for (int j = 0; j < 8; j++) {
        const float z = rectify(fmaf(a[j], f[j], b[j]));
        if (z > best[j] || z != z) {
          best[j] = z;
          where[j] = k;
        }
      }
    }
  }
  store_vector(out, i, best);
  if (positions) {
    u32 packed = 0;
UNROLL
    for (int j = 0; j < 8; j++) packed |= where[j] << (4 * j);
    positions[i] = packed;
  }
}

// The gradient of the four pixels 2h..2h+1, 2w..2w+1 of y, collected from the at most four windows that cover them.
DEVICE void pool_quad(const REAL* dout, const u32* positions, u32 image, int h, int w, int out_height, int out_width,
                      int vectors, int column, float (&g)[4][8]) {
UNROLL
  for (int q = 0; q < 4; q++) {
UNROLL
    for (int j = 0; j < 8; j++) g[q][j] = 0;
  }
UNROLL
  for (int x = 0; x < 4; x++) {
    const int oh = h + (x >> 1), ow = w + (x & 1);
    if (oh < out_height && ow < out_width) {
      const size_t o = ((size_t)(image * out_height + oh) * out_width + ow) * vectors + column;
      float f[8];
      widen(cached_vector_at(dout, o), f);
      const u32 where = positions[o];
UNROLL
      for (int q = 0; q < 4; q++) {
        const int dy = (q >> 1) - 2 * (x >> 1) + 1, dx = (q & 1) - 2 * (x & 1) + 1;
        if (dy >= 0 && dx >= 0) {
UNROLL
          for (int j = 0; j < 8; j++) g[q][j] += (where >> (4 * j) & 15) == (u32)(dy * 3 + dx) ? f[j] : 0.f;
        }
      }
    }
  }
}

// Pass 0 sums g and g·(y - mean) over all pixels, pass 1 writes dy = c1·g + c2·y + c3. Each block takes `span` quads in
// a row, so that neighbouring windows are found in the first-level cache.
template <int APPLY>
DEVICE void pool_backward_body(const REAL* dout, const u32* positions, const REAL* y, const float* state,
                               const float* coefficients, REAL* out, float* partials, int height, int width,
                               int vectors, int tile, int quads, int span) {
  const Place at(vectors, tile);
  const int out_width = (width + 1) / 2, out_height = (height + 1) / 2, channels = vectors * 8, c = at.column * 8;
  float a[8], b[8], k[3][8], sums[2][8];
UNROLL
  for (int j = 0; j < 8; j++) sums[0][j] = sums[1][j] = 0;
  if (at.active) {
    load_eight(state + 2 * channels + c, a);
    load_eight(state + 3 * channels + c, b);
    if (APPLY) {
      load_eight(coefficients + c, k[0]);
      load_eight(coefficients + channels + c, k[1]);
      load_eight(coefficients + 2 * channels + c, k[2]);
    } else {
      load_eight(state + c, k[0]);
    }
    const int end = min(quads, ((int)blockIdx.y + 1) * span);
    for (int p = (int)blockIdx.y * span + at.row; p < end; p += at.rows) {
      const u32 line = (u32)p / (u32)out_width, image = line / (u32)out_height;
      const int w = p - (int)line * out_width, h = (int)(line - image * out_height);
      Vector<REAL> r[4];
UNROLL
      for (int q = 0; q < 4; q++) {
        const int row = 2 * h + (q >> 1), col = 2 * w + (q & 1);
        if (row < height && col < width)
          r[q] = vector_at(y, ((size_t)(image * height + row) * width + col) * vectors + at.column);
      }
      float g[4][8];
      pool_quad(dout, positions, image, h, w, out_height, out_width, vectors, at.column, g);
UNROLL
      for (int q = 0; q < 4; q++) {
        const int row = 2 * h + (q >> 1), col = 2 * w + (q & 1);
        if (row < height && col < width) {
          float f[8];
          widen(r[q], f);
UNROLL
          for (int j = 0; j < 8; j++) {
            const float x = fmaf(a[j], f[j], b[j]) > 0.f ? g[q][j] : 0.f;
            if (APPLY) {
              f[j] = fmaf(k[0][j], x, fmaf(k[1][j], f[j], k[2][j]));
            } else {
              sums[0][j] += x;
              sums[1][j] = fmaf(x, f[j] - k[0][j], sums[1][j]);
            }
          }
          if (APPLY)
            store_vector(out, ((size_t)(image * height + row) * width + col) * vectors + at.column, f);
        }
      }
    }
  }
  if (!APPLY) block_sums<2>(at, sums, partials + (size_t)blockIdx.y * 2 * channels, vectors);
}
KERNEL(norm_pool_backward_sums, sizeof(REAL) == 2 ? 2 : 1)(const REAL* dout, const u32* positions, const REAL* y, const float* state,
                                   float* partials, int height, int width, int vectors, int tile, int quads,
                                   int span) {
  pool_backward_body<0>(dout, positions, y, state, 0, 0, partials, height, width, vectors, tile, quads, span);
}
KERNEL(norm_pool_backward_apply, sizeof(REAL) == 2 ? 2 : 1)(const REAL* dout, const u32* positions, const REAL* y, const float* state,
                                    const float* coefficients, REAL* out, int height, int width, int vectors, int tile,
                                    int quads, int span) {
  pool_backward_body<1>(dout, positions, y, state, coefficients, out, 0, height, width, vectors, tile, quads, span);
}

// out[n][C] = mean over the pixels of image n; blockIdx.x counts images.
KERNEL(average_pool, 4)(const REAL* x, REAL* out, int pixels, int vectors) {
  const int v = (int)(blockIdx.y * blockDim.x + threadIdx.x);
  if (v >= vectors) return;
  const size_t first = (size_t)blockIdx.x * pixels * vectors + v;
  float s[8] = {0, 0, 0, 0, 0, 0, 0, 0};
UNROLL_4
  for (int i = 0; i < pixels; i++) {
    float f[8];
    widen(vector_at(x, first + (size_t)i * vectors), f);
UNROLL
    for (int j = 0; j < 8; j++) s[j] += f[j];
  }
  const float share = 1.f / (float)pixels;
UNROLL
  for (int j = 0; j < 8; j++) s[j] *= share;
  store_vector(out, (size_t)blockIdx.x * vectors + v, s);
}

// dx[n][pixel][C] = dout[n][C] / pixels.
KERNEL(average_pool_backward, 4)(const REAL* dout, REAL* dx, int pixels, int vectors) {
  const int v = (int)(blockIdx.y * blockDim.x + threadIdx.x);
  if (v >= vectors) return;
  float f[8];
  widen(cached_vector_at(dout, (size_t)blockIdx.x * vectors + v), f);
  const float share = 1.f / (float)pixels;
UNROLL
  for (int j = 0; j < 8; j++) f[j] *= share;
  for (int i = 0; i < pixels; i++) store_vector(dx, ((size_t)blockIdx.x * pixels + i) * vectors + v, f);
}
