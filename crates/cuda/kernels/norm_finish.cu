// Batch norm's small kernels by channel, for any type of activations.

// Coefficients [3][C] of dy = c1·g + c2·y + c3, from s1 = Σ g and s2 = Σ g·(y - mean), with r = 1 / sqrt(variance +
// epsilon): dy = gamma·r·(g - s1/M - (y - mean)·r²·s2/M); the gradients of gamma and beta are r·s2 and s1.
DEVICE void finish_backward(int c, int channels, float s1, float s2, float count, const float* gamma,
                            const float* state, float* coefficients, float* dgamma, float* dbeta) {
  const float mean = state[c], inverse = state[channels + c];
  s2 *= inverse;
  const float c1 = gamma[c] * inverse, c2 = -c1 * inverse * s2 / count;
  dgamma[c] = s2;
  dbeta[c] = s1;
  coefficients[c] = c1;
  coefficients[channels + c] = c2;
  coefficients[2 * channels + c] = -c1 * s1 / count - c2 * mean;
}

// Block 32 x 32.
extern "C" __global__ void norm_backward_finish(const float* partials, int channels, int blocks, int rows,
                                                const float* gamma, const float* state, float* coefficients,
                                                float* dgamma, float* dbeta) {
  float s[2];
  gather<2>(partials, channels, blocks, s);
  const int c = (int)blockIdx.x * 32 + (int)threadIdx.x;
  if (threadIdx.y || c >= channels) return;
  finish_backward(c, channels, s[0], s[1], (float)rows, gamma, state, coefficients, dgamma, dbeta);
}

// Two branches behind one rectifier. Block 32 x 32.
extern "C" __global__ void norm_backward_finish_pair(const float* partials, int channels, int blocks, int rows,
                                                     const float* gamma, const float* state, float* coefficients,
                                                     float* dgamma, float* dbeta, const float* gamma2,
                                                     const float* state2, float* coefficients2, float* dgamma2,
                                                     float* dbeta2) {
  float s[3];
  gather<3>(partials, channels, blocks, s);
  const int c = (int)blockIdx.x * 32 + (int)threadIdx.x;
  if (threadIdx.y || c >= channels) return;
  finish_backward(c, channels, s[0], s[1], (float)rows, gamma, state, coefficients, dgamma, dbeta);
  finish_backward(c, channels, s[0], s[2], (float)rows, gamma2, state2, coefficients2, dgamma2, dbeta2);
}

// The state for inference: running statistics [2][C] in the place of the batch's.
extern "C" __global__ __launch_bounds__(256) void norm_from_running(const float* running, const float* gamma,
                                                                    const float* beta, float* state, int channels,
                                                                    float epsilon) {
  const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= channels) return;
  const float mean = running[c], inverse = 1.f / sqrtf(running[channels + c] + epsilon), a = gamma[c] * inverse;
  state[c] = mean;
  state[channels + c] = inverse;
  state[2 * channels + c] = a;
  state[3 * channels + c] = beta[c] - mean * a;
}

// running <- running + bn_momentum·(moments - running), for the moments of up to eight groups in their order.
extern "C" __global__ __launch_bounds__(256) void merge_running(float* running, const float* m0, const float* m1,
                                                                const float* m2, const float* m3, const float* m4,
                                                                const float* m5, const float* m6, const float* m7,
                                                                const StepScalars* scalars, int groups, int len) {
  const float momentum = scalars->bn_momentum;
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= len) return;
  const float* m[8] = {m0, m1, m2, m3, m4, m5, m6, m7};
  float x = running[i];
UNROLL
  for (int g = 0; g < 8; g++)
    if (g < groups) x += momentum * (m[g][i] - x);
  running[i] = x;
}
