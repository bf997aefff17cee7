// Vectors of eight channels, the order in which blocks take rows, and sums over warps and blocks.
//
// Activations are NHWC, seen as [rows][channels] with a multiple of 8 channels; padding channels hold zeros and stay
// zero. Eight channels are a vector: 16 bytes of bf16 or 32 of f32. Sums are taken in f32 in a fixed order, so results
// are the same bits in every run.

constexpr int THREADS = 256;
constexpr float LN_2 = 0.693147180559945f;
constexpr float SHORTEST = 1e-12f;  // vectors are not divided by less
#define NEGATIVE_INFINITY bits_to_float(0xff800000u)

// What is added to a block's normalised output before its rectifier: nothing, the block's input, or a branch that has
// its own batch norm.
enum { SHORTCUT_NONE = 0, SHORTCUT_IDENTITY = 1, SHORTCUT_NORMED = 2 };

// Where a gradient passes the rectifier: the sign is computed again from y with the same rounding, or read from the
// mask that the forward pass left; PAIR has two normalised branches behind one rectifier.
enum { GATE_SIGN = 0, GATE_MASK = 1, GATE_PAIR = 2 };

// A u8 value x of channel c stands for x·scale[c] + shift[c].
struct Scaling { float scale[3], shift[3]; };

struct bf16 { u16 bits; };

// Eight values as they lie in memory.
template <class T> struct Vector;
template <> struct Vector<bf16> { uint4 q[1]; };
template <> struct Vector<float> { uint4 q[2]; };

// How many vectors of each input a thread keeps in flight: as many bytes in either type.
template <class T> struct InFlight;
template <> struct InFlight<bf16> { static constexpr int one = 4, two = 4, two_and_mask = 3, three = 2; };
template <> struct InFlight<float> { static constexpr int one = 2, two = 2, two_and_mask = 2, three = 1; };

DEVICE float low_half(u32 v) { return bits_to_float(v << 16); }
DEVICE float high_half(u32 v) { return bits_to_float(v & 0xffff0000u); }

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return bits_to_float((u32)x.bits << 16); }
DEVICE void narrow(float x, float* to) { *to = x; }
DEVICE void narrow(float x, bf16* to) { to->bits = (u16)pack_bf16(x, 0.f); }

// Vector `i` of a tensor.
template <class T> DEVICE Vector<T> vector_at(const T* p, size_t i) {
  const uint4* q = (const uint4*)(p + i * 8);
  Vector<T> v;
UNROLL
  for (int k = 0; k < (int)sizeof(T) / 2; k++) v.q[k] = load_streamed(q + k);
  return v;
}
template <class T> DEVICE Vector<T> cached_vector_at(const T* p, size_t i) {
  const uint4* q = (const uint4*)(p + i * 8);
  Vector<T> v;
UNROLL
  for (int k = 0; k < (int)sizeof(T) / 2; k++) v.q[k] = load_cached(q + k);
  return v;
}
template <class T> DEVICE Vector<T> zero_vector() {
  Vector<T> v;
UNROLL
  for (int k = 0; k < (int)sizeof(T) / 2; k++) v.q[k] = make_uint4(0, 0, 0, 0);
  return v;
}

DEVICE void widen(const Vector<bf16>& v, float* f) {
  const uint4 q = v.q[0];
  f[0] = low_half(q.x); f[1] = high_half(q.x); f[2] = low_half(q.y); f[3] = high_half(q.y);
  f[4] = low_half(q.z); f[5] = high_half(q.z); f[6] = low_half(q.w); f[7] = high_half(q.w);
}
DEVICE void widen(const Vector<float>& v, float* f) {
UNROLL
  for (int k = 0; k < 2; k++) {
    f[4 * k] = bits_to_float(v.q[k].x); f[4 * k + 1] = bits_to_float(v.q[k].y);
    f[4 * k + 2] = bits_to_float(v.q[k].z); f[4 * k + 3] = bits_to_float(v.q[k].w);
  }
}

// Eight floats of a table by channel.
DEVICE void load_eight(const float* p, float* f) {
  const float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
  f[0] = a.x; f[1] = a.y; f[2] = a.z; f[3] = a.w; f[4] = b.x; f[5] = b.y; f[6] = b.z; f[7] = b.w;
}
DEVICE void store_eight(float* p, const float* f) {
  ((float4*)p)[0] = make_float4(f[0], f[1], f[2], f[3]);
  ((float4*)p)[1] = make_float4(f[4], f[5], f[6], f[7]);
}

DEVICE void store_vector(float* p, size_t i, const float* f) { store_eight(p + i * 8, f); }
DEVICE void store_vector(bf16* p, size_t i, const float* f) {
  ((uint4*)p)[i] = make_uint4(pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]), pack_bf16(f[4], f[5]),
                              pack_bf16(f[6], f[7]));
}

// max(x, 0) that keeps NaN, so that a broken value is seen in the loss.
DEVICE float rectify(float x) { return x <= 0.f ? 0.f : x; }

// Where a thread of a block of 256 works: `tile` vectors side by side (blockIdx.x counts such tiles), and 256 / tile
// rows at a time. A thread keeps its channels. Threads that are left over, or beyond the last channel, are not active.
struct Place {
  int tile, rows, lane, row, column;
  bool active;
  DEVICE Place(int vectors, int tile_) {
    tile = tile_;
    rows = THREADS / tile;
    row = (int)threadIdx.x / tile;
    lane = (int)threadIdx.x - row * tile;
    column = (int)blockIdx.x * tile + lane;
    active = row < rows && column < vectors;
  }
};

// The order in which a thread takes vectors. Groups of `group` times as many rows as a block holds are dealt to the
// blocks in turn, so that all blocks move through the tensor together and what the kernel before left in the
// second-level cache is found there; `reversed` begins at the tensor's end. A thread's first vector of each group is
// `first`, `first + step`, ... while it is held, that is inside of the tensor, which has fewer than 2^30 vectors.
struct Walk {
  int first, step;
  u32 total;
  DEVICE Walk(const Place& at, int rows, int vectors, int group, int reversed) {
    const int height = group * at.rows;
    total = (u32)rows * (u32)vectors;
    step = (int)gridDim.y * height * vectors;
    int number = blockIdx.y;
    if (reversed) {
      number = (rows + height - 1) / height - 1 - number;
      step = -step;
    }
    first = (number * height + at.row) * vectors + at.column;
    if (reversed && !holds(first)) first += step;
  }
  DEVICE bool holds(int i) const { return (u32)i < total; }
};

// Adds each thread's N sums of 8 channels over the rows of its block, in the order of the rows, into
// to[N][8·vectors]. At most 32 vectors a tile.
template <int N> DEVICE void block_sums(const Place& at, float (&sums)[N][8], float* to, int vectors) {
  __shared__ float s[8 * THREADS];
  const int tid = threadIdx.x, lane = tid % at.tile, j = tid / at.tile, column = (int)blockIdx.x * at.tile + lane;
  const bool adds = j < 8 && column < vectors;
  for (int k = 0; k < N; k++) {
UNROLL
    for (int i = 0; i < 8; i++) s[i * THREADS + tid] = sums[k][i];
    __syncthreads();
    if (adds) {
      float total = 0;
      for (int r = 0; r < at.rows; r++) total += s[j * THREADS + r * at.tile + lane];
      to[(size_t)k * vectors * 8 + column * 8 + j] = total;
    }
    __syncthreads();
  }
}

// Sums N partials of channel blockIdx.x·32 + threadIdx.x over `blocks` row blocks, partials[block][N][channels], by a
// block of 32 x 32 threads. The result is valid where threadIdx.y is 0.
template <int N> DEVICE void gather(const float* partials, int channels, int blocks, float (&out)[N]) {
  __shared__ float s[N][32][33];
  const int c = (int)blockIdx.x * 32 + (int)threadIdx.x, group = threadIdx.y;
  float t[N];
UNROLL
  for (int k = 0; k < N; k++) t[k] = 0;
  if (c < channels) {
UNROLL_4
    for (int b = group; b < blocks; b += 32) {
UNROLL
      for (int k = 0; k < N; k++) t[k] += partials[((size_t)b * N + k) * channels + c];
    }
  }
UNROLL
  for (int k = 0; k < N; k++) s[k][group][threadIdx.x] = t[k];
  __syncthreads();
  if (group == 0) {
UNROLL
    for (int k = 0; k < N; k++) {
      float total = 0;
      for (int i = 0; i < 32; i++) total += s[k][i][threadIdx.x];
      out[k] = total;
    }
  }
}

template <class F> DEVICE F warp_sum(F x) {
  for (int o = 16; o; o >>= 1) x += shuffle_xor(x, o);
  return x;
}

// The sum over all threads of a block of whole warps, at most 1024; every thread gets it.
template <class F> DEVICE F block_sum(F x) {
  __shared__ F s[32];
  x = warp_sum(x);
  __syncthreads();
  if (!(threadIdx.x & 31)) s[threadIdx.x >> 5] = x;
  __syncthreads();
  F total = 0;
  for (int i = 0; i < (int)blockDim.x / 32; i++) total += s[i];
  return total;
}

// A sum of powers of two as (largest exponent, sum of 2^(exponent - largest)).
struct LogSum {
  float top, sum;
  DEVICE void clear() { top = NEGATIVE_INFINITY; sum = 0; }
  // Adds N exponents; -infinity adds nothing, NaN makes the sum NaN.
  template <int N> DEVICE void add(const float (&x)[N]) {
    float high = top;
UNROLL
    for (int i = 0; i < N; i++) high = fmaxf(high, x[i]);
    if (high == NEGATIVE_INFINITY) high = 0;
    float total = sum * exp2_fast(top - high);
UNROLL
    for (int i = 0; i < N; i++) total += exp2_fast(x[i] - high);
    top = high;
    sum = total;
  }
  DEVICE void add(float other_top, float other_sum) {
    const float high = fmaxf(fmaxf(top, other_top), -1e30f);
    sum = sum * exp2_fast(top - high) + other_sum * exp2_fast(other_top - high);
    top = high;
  }
  // log2 of the sum.
  DEVICE float log() const { return top + log2f(sum); }
};

DEVICE void warp_merge(LogSum& x) {
  for (int o = 16; o; o >>= 1) x.add(shuffle_xor(x.top, o), shuffle_xor(x.sum, o));
}

// Merges the sums of all threads of a block of 256; every thread gets the result.
DEVICE void block_merge(LogSum& x) {
  __shared__ LogSum s[THREADS / 32];
  warp_merge(x);
  __syncthreads();
  if (!(threadIdx.x & 31)) s[threadIdx.x >> 5] = x;
  __syncthreads();
  x = s[0];
  for (int i = 1; i < THREADS / 32; i++) x.add(s[i].top, s[i].sum);
}
