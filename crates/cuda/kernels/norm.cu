// Batch norm with ReLU: z = a·y + b by channel, a = gamma / sqrt(variance + epsilon), b = beta - mean·a.
//
// state[4][C]: mean, 1 / sqrt(variance + epsilon), a, b. Written for the type REAL.

// Sums over the rows of y - p and (y - p)², p being the first row.
KERNEL(norm_statistics, 4)(const REAL* y, float* partials, int rows, int vectors, int tile, int reversed) {
  constexpr int UN = InFlight<REAL>::one;
  const Place at(vectors, tile);
  float pivot[8], sums[2][8];
UNROLL
  for (int j = 0; j < 8; j++) pivot[j] = sums[0][j] = sums[1][j] = 0;
  if (at.active) {
    widen(cached_vector_at(y, at.column), pivot);
    const Walk walk(at, rows, vectors, UN, reversed);
    const int next = at.rows * vectors;
    for (int i0 = walk.first; walk.holds(i0); i0 += walk.step) {
      if (walk.holds(i0 + (UN - 1) * next)) {
        Vector<REAL> q[UN];
UNROLL
        for (int u = 0; u < UN; u++) q[u] = vector_at(y, i0 + u * next);
UNROLL
        for (int u = 0; u < UN; u++) {
          float f[8];
          widen(q[u], f);
UNROLL
          for (int j = 0; j < 8; j++) {
            const float d = f[j] - pivot[j];
            sums[0][j] += d;
            sums[1][j] = fmaf(d, d, sums[1][j]);
          }
        }
      } else {
        for (int i = i0; walk.holds(i); i += next) {
          float f[8];
          widen(vector_at(y, i), f);
UNROLL
          for (int j = 0; j < 8; j++) {
            const float d = f[j] - pivot[j];
            sums[0][j] += d;
            sums[1][j] = fmaf(d, d, sums[1][j]);
          }
        }
      }
    }
  }
  block_sums<2>(at, sums, partials + (size_t)blockIdx.y * 2 * vectors * 8, vectors);
}

// Mean and variance from sums shifted by the first row's value p: mean = p + s1/M, variance = s2/M - (s1/M)².
// moments[2][C]: mean and unbiased variance, for the running statistics. Block 32 x 32.
extern "C" __global__ void NAME(norm_finish)(const REAL* y, const float* partials, int channels, int blocks, int rows,
                                             const float* gamma, const float* beta, float* state, float* moments,
                                             float epsilon) {
  float s[2];
  gather<2>(partials, channels, blocks, s);
  const int c = (int)blockIdx.x * 32 + (int)threadIdx.x;
  if (threadIdx.y || c >= channels) return;
  const float count = (float)rows, d = s[0] / count, mean = widen(y[c]) + d;
  const float variance = fmaxf(s[1] / count - d * d, 0.f);
  const float inverse = 1.f / sqrtf(variance + epsilon), a = gamma[c] * inverse;
  state[c] = mean;
  state[channels + c] = inverse;
  state[2 * channels + c] = a;
  state[3 * channels + c] = beta[c] - mean * a;
  moments[c] = mean;
  moments[channels + c] = variance * (count / fmaxf(count - 1.f, 1.f));
}

// out = relu(a·y + b [+ other | + a2·other + b2]). mask: bit j of byte i tells whether channel j of vector i is positive.
template <int SHORTCUT, int UN>
DEVICE void apply_body(const REAL* y, const float* state, const REAL* other, const float* other_state, REAL* out,
                       u8* mask, int rows, int vectors, int tile, int reversed) {
  const Place at(vectors, tile);
  if (!at.active) return;
  const int channels = vectors * 8, c = at.column * 8;
  float a[8], b[8], a2[8], b2[8];
  load_eight(state + 2 * channels + c, a);
  load_eight(state + 3 * channels + c, b);
  if (SHORTCUT == SHORTCUT_NORMED) {
    load_eight(other_state + 2 * channels + c, a2);
    load_eight(other_state + 3 * channels + c, b2);
UNROLL
    for (int j = 0; j < 8; j++) b[j] += b2[j];
  }
  const Walk walk(at, rows, vectors, 1, reversed);
  for (int i0 = walk.first; walk.holds(i0); i0 += UN * walk.step) {
    Vector<REAL> q[UN], w[UN];
UNROLL
    for (int u = 0; u < UN; u++) {
      const int i = i0 + u * walk.step;
      if (walk.holds(i)) {
        q[u] = vector_at(y, i);
        if (SHORTCUT) w[u] = vector_at(other, i);
      }
    }
UNROLL
    for (int u = 0; u < UN; u++) {
      const int i = i0 + u * walk.step;
      if (walk.holds(i)) {
        float f[8], g[8];
        u32 positive = 0;
        widen(q[u], f);
        if (SHORTCUT) widen(w[u], g);
UNROLL
        for (int j = 0; j < 8; j++) {
          float z = fmaf(a[j], f[j], b[j]);
          if (SHORTCUT == SHORTCUT_IDENTITY) z += g[j];
          if (SHORTCUT == SHORTCUT_NORMED) z = fmaf(a2[j], g[j], z);
          positive |= (z > 0.f ? 1u : 0u) << j;
          f[j] = rectify(z);
        }
        store_vector(out, i, f);
        if (SHORTCUT && mask) mask[i] = (u8)positive;
      }
    }
  }
}
KERNEL(norm_apply, 4)(const REAL* y, const float* state, REAL* out, int rows, int vectors, int tile, int reversed) {
  apply_body<SHORTCUT_NONE, InFlight<REAL>::one>(y, state, 0, 0, out, 0, rows, vectors, tile, reversed);
}
KERNEL(norm_apply_identity, 3)(const REAL* y, const float* state, const REAL* other, REAL* out, u8* mask, int rows,
                               int vectors, int tile, int reversed) {
  apply_body<SHORTCUT_IDENTITY, InFlight<REAL>::two>(y, state, other, 0, out, mask, rows, vectors, tile, reversed);
}
KERNEL(norm_apply_normed, 3)(const REAL* y, const float* state, const REAL* other, const float* other_state, REAL* out,
                             u8* mask, int rows, int vectors, int tile, int reversed) {
  apply_body<SHORTCUT_NORMED, InFlight<REAL>::three>(y, state, other, other_state, out, mask, rows, vectors, tile,
                                                     reversed);
}

// Sums over the rows of g and g·(y - mean) [and g·(y2 - mean2)], g being dout where the gate is open.
template <int GATE, int UN>
DEVICE void backward_sums_body(const REAL* dout, const REAL* y, const float* state, const u8* mask, const REAL* y2,
                               const float* state2, float* partials, int rows, int vectors, int tile, int reversed) {
  constexpr int N = GATE == GATE_PAIR ? 3 : 2;
  const Place at(vectors, tile);
  const int channels = vectors * 8, c = at.column * 8;
  float mean[8], a[8], b[8], mean2[8], sums[N][8];
UNROLL
  for (int j = 0; j < 8; j++) {
UNROLL
    for (int k = 0; k < N; k++) sums[k][j] = 0;
  }
  if (at.active) {
    load_eight(state + c, mean);
    if (GATE == GATE_SIGN) {
      load_eight(state + 2 * channels + c, a);
      load_eight(state + 3 * channels + c, b);
    }
    if (GATE == GATE_PAIR) load_eight(state2 + c, mean2);
    const Walk walk(at, rows, vectors, UN, reversed);
    const int next = at.rows * vectors;
    for (int i0 = walk.first; walk.holds(i0); i0 += walk.step) {
      Vector<REAL> p[UN], q[UN], w[UN];
      u32 m[UN];
UNROLL
      for (int u = 0; u < UN; u++) {
        const int i = i0 + u * next;
        if (walk.holds(i)) {
          p[u] = vector_at(dout, i);
          q[u] = vector_at(y, i);
          if (GATE) m[u] = mask[i];
          if (GATE == GATE_PAIR) w[u] = vector_at(y2, i);
        } else {
          p[u] = q[u] = w[u] = zero_vector<REAL>();
          m[u] = 0;
        }
      }
UNROLL
      for (int u = 0; u < UN; u++) {
        float g[8], f[8], h[8];
        widen(p[u], g);
        widen(q[u], f);
        if (GATE == GATE_PAIR) widen(w[u], h);
UNROLL
        for (int j = 0; j < 8; j++) {
          const bool open = GATE ? (m[u] >> j & 1) != 0 : fmaf(a[j], f[j], b[j]) > 0.f;
          const float x = open ? g[j] : 0.f;
          sums[0][j] += x;
          sums[1][j] = fmaf(x, f[j] - mean[j], sums[1][j]);
          if (GATE == GATE_PAIR) sums[N - 1][j] = fmaf(x, h[j] - mean2[j], sums[N - 1][j]);
        }
      }
    }
  }
  block_sums<N>(at, sums, partials + (size_t)blockIdx.y * N * channels, vectors);
}
KERNEL(norm_backward_sums, 3)(const REAL* dout, const REAL* y, const float* state, float* partials, int rows,
                              int vectors, int tile, int reversed) {
  backward_sums_body<GATE_SIGN, InFlight<REAL>::two>(dout, y, state, 0, 0, 0, partials, rows, vectors, tile, reversed);
}
KERNEL(norm_backward_sums_mask, 3)(const REAL* dout, const REAL* y, const float* state, const u8* mask,
                                   float* partials, int rows, int vectors, int tile, int reversed) {
  backward_sums_body<GATE_MASK, InFlight<REAL>::two>(dout, y, state, mask, 0, 0, partials, rows, vectors, tile,
                                                     reversed);
}
KERNEL(norm_backward_sums_pair, 2)(const REAL* dout, const REAL* y, const float* state, const u8* mask, const REAL* y2,
                                   const float* state2, float* partials, int rows, int vectors, int tile,
                                   int reversed) {
  backward_sums_body<GATE_PAIR, InFlight<REAL>::three>(dout, y, state, mask, y2, state2, partials, rows, vectors, tile,
                                                       reversed);
}

// dy = c1·g + c2·y + c3 by channel. SIGN: dy to `out`, which may be dout. MASK: dy to `out`, g over dout. PAIR: dy to
// `out`, the second branch's to `out2`.
template <int GATE, int UN>
DEVICE void backward_apply_body(REAL* dout, const REAL* y, const float* state, const float* coefficients,
                                const u8* mask, REAL* out, const REAL* y2, const float* coefficients2, REAL* out2,
                                int rows, int vectors, int tile, int reversed) {
  const Place at(vectors, tile);
  if (!at.active) return;
  const int channels = vectors * 8, c = at.column * 8;
  float a[8], b[8], c1[8], c2[8], c3[8], e1[8], e2[8], e3[8];
  if (GATE == GATE_SIGN) {
    load_eight(state + 2 * channels + c, a);
    load_eight(state + 3 * channels + c, b);
  }
  load_eight(coefficients + c, c1);
  load_eight(coefficients + channels + c, c2);
  load_eight(coefficients + 2 * channels + c, c3);
  if (GATE == GATE_PAIR) {
    load_eight(coefficients2 + c, e1);
    load_eight(coefficients2 + channels + c, e2);
    load_eight(coefficients2 + 2 * channels + c, e3);
  }
  const Walk walk(at, rows, vectors, 1, reversed);
  for (int i0 = walk.first; walk.holds(i0); i0 += UN * walk.step) {
    Vector<REAL> p[UN], q[UN], w[UN];
    u32 m[UN];
UNROLL
    for (int u = 0; u < UN; u++) {
      m[u] = 0;
      const int i = i0 + u * walk.step;
      if (walk.holds(i)) {
        p[u] = vector_at((const REAL*)dout, i);
        q[u] = vector_at(y, i);
        if (GATE) m[u] = mask[i];
        if (GATE == GATE_PAIR) w[u] = vector_at(y2, i);
      }
    }
    u32 open = 0;  // the masks in one register
UNROLL
    for (int u = 0; u < UN; u++) open |= m[u] << (8 * u);
UNROLL
    for (int u = 0; u < UN; u++) {
      const int i = i0 + u * walk.step;
      if (walk.holds(i)) {
        float g[8], f[8], h[8];
        widen(p[u], g);
        widen(q[u], f);
        if (GATE == GATE_PAIR) widen(w[u], h);
UNROLL
        for (int j = 0; j < 8; j++) {
          const bool passes = GATE ? (open >> (8 * u + j) & 1) != 0 : fmaf(a[j], f[j], b[j]) > 0.f;
          g[j] = passes ? g[j] : 0.f;
        }
        if (GATE == GATE_MASK) store_vector(dout, i, g);
UNROLL
        for (int j = 0; j < 8; j++) {
          f[j] = fmaf(c1[j], g[j], fmaf(c2[j], f[j], c3[j]));
          if (GATE == GATE_PAIR) h[j] = fmaf(e1[j], g[j], fmaf(e2[j], h[j], e3[j]));
        }
        store_vector(out, i, f);
        if (GATE == GATE_PAIR) store_vector(out2, i, h);
      }
    }
  }
}
KERNEL(norm_backward_apply, 2)(const REAL* dout, const REAL* y, const float* state, const float* coefficients,
                               REAL* out, int rows, int vectors, int tile, int reversed) {
  backward_apply_body<GATE_SIGN, InFlight<REAL>::two>((REAL*)dout, y, state, coefficients, 0, out, 0, 0, 0, rows,
                                                      vectors, tile, reversed);
}
KERNEL(norm_backward_apply_mask, 3)(REAL* dout, const REAL* y, const float* coefficients, const u8* mask, REAL* out,
                                    int rows, int vectors, int tile, int reversed) {
  backward_apply_body<GATE_MASK, InFlight<REAL>::two_and_mask>(dout, y, 0, coefficients, mask, out, 0, 0, 0, rows, vectors,
                                                      tile, reversed);
}
KERNEL(norm_backward_apply_pair, 2)(const REAL* dout, const REAL* y, const float* coefficients, const u8* mask,
                                    REAL* out, const REAL* y2, const float* coefficients2, REAL* out2, int rows,
                                    int vectors, int tile, int reversed) {
  backward_apply_body<GATE_PAIR, InFlight<REAL>::three>((REAL*)dout, y, 0, coefficients, mask, out, y2, coefficients2,
                                                        out2, rows, vectors, tile, reversed);
}
