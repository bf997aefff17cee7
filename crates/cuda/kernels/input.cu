// Images [n][h][w][3] as f32 or u8 become the stem's input. Written for the type REAL.

DEVICE float image_value(const float* images, size_t i, int, const Scaling&, const REAL*) { return images[i]; }
DEVICE float image_value(const u8* images, size_t i, int c, const Scaling& s, const REAL*) {
  // Rounded twice, as the host does it: a step of bytes then has the bits of one of values.
  return add_rounded(multiply_rounded((float)images[i], s.scale[c]), s.shift[c]);
}

// Three channels and five zeros a pixel.
template <class SOURCE> DEVICE void pad_body(const SOURCE* images, const Scaling& s, REAL* out, int pixels) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= pixels) return;
  float f[8] = {0, 0, 0, 0, 0, 0, 0, 0};
UNROLL
  for (int c = 0; c < 3; c++) f[c] = image_value(images, (size_t)i * 3 + c, c, s, out);
  store_vector(out, i, f);
}
KERNEL(pixel_pad_f32, 4)(const float* images, REAL* out, int pixels) {
  const Scaling s = {{1, 1, 1}, {0, 0, 0}};
  pad_body(images, s, out, pixels);
}
KERNEL(pixel_pad_u8, 4)(const u8* images, float scale0, float scale1, float scale2, float shift0, float shift1,
                        float shift2, REAL* out, int pixels) {
  const Scaling s = {{scale0, scale1, scale2}, {shift0, shift1, shift2}};
  pad_body(images, s, out, pixels);
}

// A 7x7 convolution of stride 2 and padding 3 is a 4x4 convolution of stride 1 over blocks of 2x2 pixels (12 values and
// 4 zeros). Here four blocks side by side are written out, so that a 4x1 kernel of 64 channels is left:
//
//   out[n][oh + 3][ow][64], oh = ceil(h/2), ow = ceil(w/2); row r and column q hold the blocks (r-2, q-2..q+1);
//   channel 16·k + (dy·2 + dx)·3 + c of a pixel is (2(r-2) + dy, 2(q-2+k) + dx, c), zero outside of the image.
//
// One thread a block.
template <class SOURCE>
DEVICE void rows_body(const SOURCE* images, const Scaling& s, REAL* out, int height, int width, int total) {
  const int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (i >= total) return;
  const int out_width = (width + 1) / 2, padded_height = (height + 1) / 2 + 3;
  const u32 place = (u32)i >> 2, line = place / (u32)out_width, image = line / (u32)padded_height;
  const int bx = (int)(place - line * out_width) + (i & 3) - 2, by = (int)(line - image * padded_height) - 2;
  float f[16];
UNROLL
  for (int j = 0; j < 16; j++) f[j] = 0;
UNROLL
  for (int dy = 0; dy < 2; dy++) {
    const int row = 2 * by + dy;
    if (row >= 0 && row < height) {
      const size_t at = (size_t)(image * height + row) * width;
UNROLL
      for (int dx = 0; dx < 2; dx++) {
        const int col = 2 * bx + dx;
        if (col >= 0 && col < width) {
UNROLL
          for (int c = 0; c < 3; c++) f[(dy * 2 + dx) * 3 + c] = image_value(images, (at + col) * 3 + c, c, s, out);
        }
      }
    }
  }
  store_vector(out, 2 * (size_t)i, f);
  store_vector(out, 2 * (size_t)i + 1, f + 8);
}
KERNEL(pixel_rows_f32, 4)(const float* images, REAL* out, int height, int width, int total) {
  const Scaling s = {{1, 1, 1}, {0, 0, 0}};
  rows_body(images, s, out, height, width, total);
}
KERNEL(pixel_rows_u8, 4)(const u8* images, float scale0, float scale1, float scale2, float shift0, float shift1,
                         float shift2, REAL* out, int height, int width, int total) {
  const Scaling s = {{scale0, scale1, scale2}, {shift0, shift1, shift2}};
  rows_body(images, s, out, height, width, total);
}

// Weights [K][4][1][64] have 147 values that a 7x7 kernel has and 109 that it has not; these gradients become zero.
KERNEL(stem_mask, 4)(REAL* gradient, int len) {
  const int e = (int)blockIdx.x * THREADS + (int)threadIdx.x;
  if (e >= len) return;
  const int channel = e & 15, bx = e >> 4 & 3, by = e >> 6 & 3, pixel = channel / 3;
  if (channel >= 12 || (by == 0 && pixel < 2) || (bx == 0 && !(pixel & 1))) narrow(0.f, gradient + e);
}
