// The step's diagnostics from the rows' and prototypes' sums. One block of 1024.

// Entropy in nats of weights, with their sum divided out: ln m - Σ w ln w / m. All threads of the block take part.
DEVICE double entropy_of(double mass, double sum) { return mass > 0 ? fmax(log(mass) - sum / mass, 0.0) : 0.0; }

extern "C" __global__ __launch_bounds__(1024) void step_report(const float4* rows, const float* usage,
                                                               const float* mean, const StepScalars* scalars,
                                                               StepReport* report, int n_rows, int prototypes,
                                                               int chunks, int channels, int n_pairs, int n_codes) {
  double loss = 0, entropy = 0;
  for (int r = threadIdx.x; r < n_rows; r += 1024) {
    const float4 x = rows[r];
    loss += x.x;
    entropy += x.y;
  }
  double mass[2] = {0, 0}, sum[2] = {0, 0};
  for (int k = threadIdx.x; k < prototypes; k += 1024) {
UNROLL
    for (int j = 0; j < 2; j++) {
      float w = 0;
      for (int c = 0; c < chunks; c++) w += usage[((size_t)c * 2 + j) * prototypes + k];
      mass[j] += w;
      if (w > 0.f) sum[j] += (double)w * (double)logf(w);
    }
  }
  double square = 0;
  for (int c = threadIdx.x; c < channels; c += 1024) square += (double)mean[c] * (double)mean[c];
  loss = block_sum(loss);
  entropy = block_sum(entropy);
  square = block_sum(square);
UNROLL
  for (int j = 0; j < 2; j++) {
    mass[j] = block_sum(mass[j]);
    sum[j] = block_sum(sum[j]);
  }
  if (!threadIdx.x) {
    report->loss = loss / n_pairs;
    report->code_entropy = entropy / n_codes;
    report->prediction_perplexity = exp(entropy_of(mass[0], sum[0]));
    report->code_perplexity = exp(entropy_of(mass[1], sum[1]));
    report->spread = 1.0 - square;
    report->serial = scalars->serial;
  }
}

// f_k = -log2 of the partial sums of all chunks.
extern "C" __global__ __launch_bounds__(256) void sinkhorn_merge(const float2* partials, float* f, int chunks,
                                                                 int prototypes, int stride) {
  const int k = (int)blockIdx.x * THREADS + (int)threadIdx.x, i = blockIdx.y;
  if (k >= prototypes) return;
  LogSum sum;
  sum.clear();
  for (int c = 0; c < chunks; c++) {
    const float2 p = partials[((size_t)i * chunks + c) * prototypes + k];
    sum.add(p.x, p.y);
  }
  f[(size_t)i * stride + k] = -sum.log();
}
