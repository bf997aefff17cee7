// Scores to codes by Sinkhorn's iterations, the swapped loss with its gradient, diagnostics, the queue. Written for the
// type REAL of scores and embeddings.
//
// For assignment crop i the problem has the rows of its queue, if that is full, then the batch's. With
// x = s·log2(e)/epsilon and potentials in powers of two, a code is 2^(x_bk + f_k + g_b). An iteration gives every
// prototype the same mass, then every sample: f_k = -log2 Σ_b 2^(x_bk + g_b), g_b = -log2 Σ_k 2^(x_bk + f_k). Constant
// factors need no care, since the last step makes each sample's code sum to 1. Nothing can overflow.

// f from a sum over all rows, or, where there is more than one chunk of them, partials[i][chunk][K] (top, sum) for
// sinkhorn_merge; 32 prototypes and 8 rows at a time.
KERNEL(sinkhorn_prototypes, 4)(const REAL* scores, const REAL* queue_scores, const StepScalars* scalars,
                               const int* assign, const float* g, float* f, float2* partials, int batch,
                               int queued, int prototypes, int stride, int chunk_rows, float factor, int use_g) {
  const CodeRows<REAL> from = {scores, queue_scores, assign, batch, queued, stride};
  const int i = blockIdx.z, k = (int)blockIdx.x * 32 + (int)threadIdx.x, rows = queued + batch;
  const int end = min(rows, ((int)blockIdx.y + 1) * chunk_rows);
  const int begin = max((int)blockIdx.y * chunk_rows, from.first(scalars));
  LogSum sum;
  sum.clear();
  if (k < prototypes) {
    for (int r = begin + (int)threadIdx.y; r < end; r += 32) {
      float x[4];
UNROLL
      for (int u = 0; u < 4; u++) {
        const int row = r + 8 * u;
        x[u] = row < end ? fmaf(widen(from.row(i, row)[k]), factor, use_g ? g[(size_t)i * rows + row] : 0.f)
                         : NEGATIVE_INFINITY;
      }
      sum.add(x);
    }
  }
  __shared__ LogSum s[8][32];
  s[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && k < prototypes) {
    for (int y = 1; y < 8; y++) sum.add(s[y][threadIdx.x].top, s[y][threadIdx.x].sum);
    if (gridDim.y == 1)
      f[(size_t)i * stride + k] = -sum.log();
    else
      partials[((size_t)i * gridDim.y + blockIdx.y) * prototypes + k] = make_float2(sum.top, sum.sum);
  }
}

// g of the rows from `first_row` on; a block a row. blockIdx.y is the assignment crop.
KERNEL(sinkhorn_samples, 4)(const REAL* scores, const REAL* queue_scores, const StepScalars* scalars,
                            const int* assign, const float* f, float* g, int batch, int queued, int first_row,
                            int prototypes, int stride, float factor, int use_f) {
  const CodeRows<REAL> from = {scores, queue_scores, assign, batch, queued, stride};
  const int i = blockIdx.y, row = first_row + (int)blockIdx.x;
  if (row < from.first(scalars)) return;
  const REAL* s = from.row(i, row);
  LogSum sum;
  sum.clear();
  for (int k = threadIdx.x; k < prototypes; k += 4 * THREADS) {
    float x[4];
UNROLL
    for (int u = 0; u < 4; u++) {
      const int at = k + u * THREADS;
      x[u] = at < prototypes ? fmaf(widen(s[at]), factor, use_f ? f[(size_t)i * stride + at] : 0.f)
                             : NEGATIVE_INFINITY;
    }
    sum.add(x);
  }
  block_merge(sum);
  if (!threadIdx.x) g[(size_t)i * (queued + batch) + row] = -sum.log();
}

// The codes of the batch in f32, codes[i][batch][stride]; zero beyond the last prototype.
KERNEL(store_codes, 4)(const REAL* scores, const int* assign, const float* f, const float* g, float* codes, int batch,
                       int queued, int prototypes, int stride, float factor) {
  const int k = (int)blockIdx.x * THREADS + (int)threadIdx.x, b = blockIdx.y, i = blockIdx.z;
  if (k >= stride) return;
  const CodeRows<REAL> from = {scores, 0, assign, batch, 0, stride};
  float q = 0;
  if (k < prototypes)
    q = exp2_fast(fmaf(widen(from.row(i, b)[k]), factor, f[(size_t)i * stride + k]) +
                  g[(size_t)i * (queued + batch) + queued + b]);
  codes[((size_t)i * batch + b) * stride + k] = q;
}

// One row of the loss, a block a row = crop·batch + sample. With t = s·log2(e)/temperature and the row's
// l = log2 Σ 2^t, p = 2^(t-l) and q the sum of the other crops' codes:
//   loss = ln 2 · Σ q·(l - t) / pairs,  gradient = (others·p - q) / (temperature·pairs).
// rows_out[row]: loss, entropy of the row's own code (0 if it has none), l.
KERNEL(swapped_loss, 4)(const REAL* scores, const int* assign, const float* f, const float* g, REAL* gradient,
                        float4* rows_out, int n_assign, int batch, int queued, int prototypes, int stride,
                        float factor, float temperature_factor, float scale) {
  const int row = blockIdx.x, crop = row / batch, sample = row - crop * batch, rows = queued + batch;
  const REAL* s = scores + (size_t)row * stride;
  LogSum all;
  all.clear();
  for (int k = threadIdx.x; k < prototypes; k += 4 * THREADS) {
    float x[4];
UNROLL
    for (int u = 0; u < 4; u++)
      x[u] = k + u * THREADS < prototypes ? widen(s[k + u * THREADS]) * temperature_factor : NEGATIVE_INFINITY;
    all.add(x);
  }
  block_merge(all);
  const float l = all.log();
  int others = 0;
  for (int i = 0; i < n_assign; i++) others += assign[i] != crop;
  float loss = 0, entropy = 0;
  for (int k = threadIdx.x; k < stride; k += THREADS) {
    float d = 0;
    if (k < prototypes) {
      const float t = fmaf(widen(s[k]), temperature_factor, -l);
      float target = 0;
      for (int i = 0; i < n_assign; i++) {
        const float x = widen(scores[((size_t)assign[i] * batch + sample) * stride + k]);
        const float e = fmaf(x, factor, f[(size_t)i * stride + k]) + g[(size_t)i * rows + queued + sample];
        const float q = exp2_fast(e);
        if (assign[i] != crop)
          target += q;
        else if (q > 0.f)
          entropy = fmaf(-q, e, entropy);
      }
      loss = fmaf(-target, t, loss);
      d = scale * ((float)others * exp2_fast(t) - target);
    }
    narrow(d, gradient + (size_t)row * stride + k);
  }
  loss = block_sum(loss);
  entropy = block_sum(entropy);
  if (!threadIdx.x) rows_out[row] = make_float4(loss * LN_2, entropy * LN_2, l, 0.f);
}

// Sums over a chunk of rows: usage[chunk][0][K] of predictions, usage[chunk][1][K] of codes; 32 prototypes and 8 rows at
// a time.
KERNEL(swapped_usage, 4)(const REAL* scores, const int* assign, const float* f, const float* g, const float4* rows_in,
                         float* usage, int n_assign, int batch, int queued, int prototypes, int stride, int n_rows,
                         int chunk_rows, float factor, float temperature_factor) {
  const int k = (int)blockIdx.x * 32 + (int)threadIdx.x, end = min(n_rows, ((int)blockIdx.y + 1) * chunk_rows);
  float predictions = 0, codes = 0;
  if (k < prototypes) {
    for (int row = (int)blockIdx.y * chunk_rows + (int)threadIdx.y; row < end; row += 8) {
      const int crop = row / batch, sample = row - crop * batch;
      const float s = widen(scores[(size_t)row * stride + k]);
      predictions += exp2_fast(fmaf(s, temperature_factor, -rows_in[row].z));
      for (int i = 0; i < n_assign; i++)
        if (assign[i] == crop)
          codes += exp2_fast(fmaf(s, factor, f[(size_t)i * stride + k]) +
                             g[(size_t)i * (queued + batch) + queued + sample]);
    }
  }
  __shared__ float2 s[8][32];
  s[threadIdx.y][threadIdx.x] = make_float2(predictions, codes);
  __syncthreads();
  if (threadIdx.y == 0 && k < prototypes) {
    for (int y = 1; y < 8; y++) {
      predictions += s[y][threadIdx.x].x;
      codes += s[y][threadIdx.x].y;
    }
    usage[(size_t)blockIdx.y * 2 * prototypes + k] = predictions;
    usage[((size_t)blockIdx.y * 2 + 1) * prototypes + k] = codes;
  }
}

// mean[C] over the rows of the embeddings; 32 channels and 8 rows at a time.
KERNEL(mean_row, 4)(const REAL* unit, float* mean, int rows, int channels) {
  const int c = (int)blockIdx.x * 32 + (int)threadIdx.x;
  float sum = 0;
  if (c < channels) {
UNROLL_4
    for (int row = threadIdx.y; row < rows; row += 8) sum += widen(unit[(size_t)row * channels + c]);
  }
  __shared__ float s[8][32];
  s[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && c < channels) {
    for (int y = 1; y < 8; y++) sum += s[y][threadIdx.x];
    mean[c] = sum / (float)rows;
  }
}

// The embeddings of the assignment crops into their queues [n_assign][queued][C], from row scalars->queue_slot on.
KERNEL(queue_push, 4)(const REAL* unit, REAL* queue, const StepScalars* scalars, const int* assign, int batch,
                      int queued, int vectors) {
  const int at = (int)blockIdx.x * THREADS + (int)threadIdx.x, i = blockIdx.y;
  if (at >= batch * vectors || !scalars->queue_push) return;
  float f[8];
  widen(vector_at(unit, (size_t)assign[i] * batch * vectors + at), f);
  store_vector(queue, ((size_t)i * queued + scalars->queue_slot) * vectors + at, f);
}
