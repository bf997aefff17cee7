// Optimisers over all tensors at once: a table of tensors, cut into chunks of 8192 values, a block a chunk.
//
// Parameters and slots are f32; gradients are bf16 or f32, one for each group of crops, added here in the order of the
// groups. A bf16 copy of the parameters is refreshed where there is one. The rules are those of `swav-optim`.

// The same structure is in `kernels/update.rs`.
struct Tensor {
  float* weights;
  float* first;          // momentum, or AdamW's mean of gradients
  float* second;         // AdamW's mean of squares, or null
  const void* gradient;  // of the first group
  bf16* copy;            // or null
  u64 group_stride;      // bytes from a group's gradient to the next group's
  u64 flat;              // place of the sum of gradients in a flat buffer, in values
  int len;               // a multiple of 8
  int narrow_gradient;   // 1: bf16
  int groups;
  int rule;              // index of RuleScalars
  int first_chunk, chunks;
};
struct Chunk { int tensor, offset; };
constexpr int CHUNK = 8192;

// The sum of the groups' gradients of vector i.
DEVICE void sum_gradient(const Tensor& t, int i, float* g) {
UNROLL
  for (int j = 0; j < 8; j++) g[j] = 0;
UNROLL_2
  for (int k = 0; k < t.groups; k++) {
    const char* p = (const char*)t.gradient + (u64)k * t.group_stride;
    float h[8];
    if (t.narrow_gradient)
      widen(vector_at((const bf16*)p, i), h);
    else
      widen(vector_at((const float*)p, i), h);
UNROLL
    for (int j = 0; j < 8; j++) g[j] += h[j];
  }
}

// partials[chunk] = Σ w², Σ g².
extern "C" __global__ __launch_bounds__(256) void update_norms(const Tensor* tensors, const Chunk* chunks,
                                                               const StepScalars* scalars, float2* partials) {
  const Chunk c = chunks[blockIdx.x];
  const Tensor t = tensors[c.tensor];
  float squares = 0, gradients = 0;
  if (scalars->classes[t.rule].enabled) {
    const int end = min(t.len, c.offset + CHUNK) / 8;
    for (int i = c.offset / 8 + (int)threadIdx.x; i < end; i += THREADS) {
      float w[8], g[8];
      load_eight(t.weights + (size_t)i * 8, w);
      sum_gradient(t, i, g);
UNROLL
      for (int j = 0; j < 8; j++) {
        squares = fmaf(w[j], w[j], squares);
        gradients = fmaf(g[j], g[j], gradients);
      }
    }
  }
  squares = block_sum(squares);
  gradients = block_sum(gradients);
  if (!threadIdx.x) partials[blockIdx.x] = make_float2(squares, gradients);
}

// Σ w² and Σ g² of `count` chunks from `first` on; every thread gets them.
DEVICE void sum_norms(const float2* partials, int first, int count, double& squares, double& gradients) {
  squares = gradients = 0;
  for (int i = threadIdx.x; i < count; i += (int)blockDim.x) {
    const float2 p = partials[first + i];
    squares += p.x;
    gradients += p.y;
  }
  squares = block_sum(squares);
  gradients = block_sum(gradients);
}

enum { RULE_LARC = 0, RULE_SGD = 1, RULE_ADAMW = 2 };

// min(1, most / (norm + 1e-6)); 1 where nothing is clipped (most is 0) or the norm is not finite.
DEVICE float clip_scale(double norm, double most) {
  const bool finite = norm - norm == 0;
  return most > 0 && finite ? (float)fmin(1., most / (norm + 1e-6)) : 1.f;
}

// The norms over all tensors, and how much gradients are clipped, before the first parameter moves. One block of 1024.
extern "C" __global__ __launch_bounds__(1024) void update_report(const float2* partials, StepReport* report,
                                                                 const StepScalars* scalars, int chunks) {
  double squares, gradients;
  sum_norms(partials, 0, chunks, squares, gradients);
  if (!threadIdx.x) {
    report->parameter_norm = sqrt(squares);
    report->gradient_norm = sqrt(gradients);
    report->clip_scale = clip_scale(sqrt(gradients), scalars->max_gradient_norm);
    report->serial = scalars->serial;
  }
}

// Gradients are first multiplied by gradient_scale and the factor of clipping. LARC: with |p| and |g| both non-zero,
// g <- (g + wd·p)·trust·|p| / (|g| + wd·|p| + 1e-8), else g unchanged; then as SGD without decay. SGD: v <- momentum·v + g + wd·p, p <- p - lr·v. AdamW: p <- p - lr·wd·p, m <- b1·m + (1-b1)·g,
// s <- b2·s + (1-b2)·g², p <- p - lr·m·c1 / (sqrt(s·c2) + epsilon).
template <int RULE>
DEVICE void update_body(const Tensor* tensors, const Chunk* chunks, const StepScalars* scalars,
                        const StepReport* report, const float2* partials) {
  const Chunk c = chunks[blockIdx.x];
  const Tensor t = tensors[c.tensor];
  const RuleScalars rule = scalars->classes[t.rule];
  if (!rule.enabled) return;
  const float gradient_scale = rule.gradient_scale * report->clip_scale;
  float scale = 1.f, decay = rule.weight_decay;
  if (RULE == RULE_LARC && rule.trust >= 0.f) {
    double squares, gradients;
    sum_norms(partials, t.first_chunk, t.chunks, squares, gradients);
    const float p = (float)sqrt(squares), g = (float)sqrt(gradients) * gradient_scale;
    if (p == 0.f || g == 0.f)
      decay = 0.f;
    else
      scale = rule.trust * p / (g + decay * p + 1e-8f);
  }
  const int end = min(t.len, c.offset + CHUNK) / 8;
  for (int i = c.offset / 8 + (int)threadIdx.x; i < end; i += THREADS) {
    const size_t at = (size_t)i * 8;
    float w[8], v[8], g[8], s[8];
    load_eight(t.weights + at, w);
    load_eight(t.first + at, v);
    if (RULE == RULE_ADAMW) load_eight(t.second + at, s);
    sum_gradient(t, i, g);
UNROLL
    for (int j = 0; j < 8; j++) {
      g[j] *= gradient_scale;
      if (RULE == RULE_ADAMW) {
        v[j] = fmaf(1.f - rule.momentum, g[j], rule.momentum * v[j]);
        s[j] = fmaf((1.f - rule.second_decay) * g[j], g[j], rule.second_decay * s[j]);
        w[j] -= rule.lr * rule.weight_decay * w[j];
        w[j] -= rule.lr * (v[j] * rule.first_correction) / (sqrtf(s[j] * rule.second_correction) + rule.epsilon);
      } else {
        v[j] = fmaf(rule.momentum, v[j], fmaf(decay, w[j], g[j]) * scale);
        w[j] -= rule.lr * v[j];
      }
    }
    store_eight(t.weights + at, w);
    store_eight(t.first + at, v);
    if (RULE == RULE_ADAMW) store_eight(t.second + at, s);
    if (t.copy) store_vector(t.copy, i, w);
  }
}
extern "C" __global__ __launch_bounds__(256) void update_larc(const Tensor* tensors, const Chunk* chunks,
                                                              const StepScalars* scalars, const StepReport* report,
                                                              const float2* partials) {
  update_body<RULE_LARC>(tensors, chunks, scalars, report, partials);
}
extern "C" __global__ __launch_bounds__(256) void update_sgd(const Tensor* tensors, const Chunk* chunks,
                                                             const StepScalars* scalars, const StepReport* report) {
  update_body<RULE_SGD>(tensors, chunks, scalars, report, 0);
}
extern "C" __global__ __launch_bounds__(256) void update_adamw(const Tensor* tensors, const Chunk* chunks,
                                                               const StepScalars* scalars, const StepReport* report) {
  update_body<RULE_ADAMW>(tensors, chunks, scalars, report, 0);
}

// The groups' gradients added into a flat f32 buffer.
extern "C" __global__ __launch_bounds__(256) void sum_gradients(const Tensor* tensors, const Chunk* chunks,
                                                                float* flat) {
  const Chunk c = chunks[blockIdx.x];
  const Tensor t = tensors[c.tensor];
  const int end = min(t.len, c.offset + CHUNK) / 8;
  for (int i = c.offset / 8 + (int)threadIdx.x; i < end; i += THREADS) {
    float g[8];
    sum_gradient(t, i, g);
    store_eight(flat + t.flat + (size_t)i * 8, g);
  }
}

// Casts of `total` vectors.
extern "C" __global__ __launch_bounds__(256) void cast_to_bf16(const float* from, bf16* to, int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  float f[8];
  widen(vector_at(from, i), f);
  store_vector(to, i, f);
}
extern "C" __global__ __launch_bounds__(256) void cast_to_f32(const bf16* from, float* to, int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  float f[8];
  widen(vector_at(from, i), f);
  store_vector(to, i, f);
}
