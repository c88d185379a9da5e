// The convolution of `conv.h` on maps so small that borders are much of them, for CPUs with AVX2.
//
// There a tile is one place of the outputs in several images, which have the same taps inside of the map. Taps outside are
// left out: on a map of 2 x 2 pixels with a kernel of 5 x 5, five sixths of them. Images are copied one group at a time.
// What a sum leaves out are zeros, so outputs and gradients of the input are, bit for bit, those of `conv.h` as long as
// the weights are finite. The kernel's gradient adds up the samples in another order.

#pragma once

#include "conv.h"

#if defined(G16_GROUP_CONV)
#if defined(__AVX512F__)

inline bool small(const GroupConv&) { return false; }
constexpr auto *small_group_conv = group_conv, *small_input_gradient = group_conv_input_gradient,
               *small_kernel_gradient = group_conv_kernel_gradient;

#else  // AVX2

constexpr int64_t kSmall = 8 * 8;        // pixels of a map; on larger ones the copies with borders are faster
constexpr int64_t kTogether = 1 << 15;   // numbers of the images that are copied together, about: 128 KB
constexpr int64_t kGradients = 3 << 11;  // the same for the gradient of the kernel, which reads them for each tap: 24 KB

inline bool small(const GroupConv& conv) { return conv.samples > 2 && conv.height * conv.width <= kSmall; }

// One group of `count` images of `pixels` pixels each, side by side.
inline void gather(const float* images, int64_t count, int64_t pixels, int64_t channels, float* to) {
  for (int64_t i = 0; i < count * pixels; ++i, images += channels, to += kGroup) copy_group(images, to);
}

// Of each place of an image the taps inside of the map: pixel_of(row, column, kernel row, kernel column) gives the pixel
// that is read there, or -1.
template <class PixelOf>
std::vector<std::vector<Place>> places(const GroupConv& conv, int64_t rows, int64_t columns, const float* weights,
                                       PixelOf pixel_of) {
  std::vector<std::vector<Place>> found(rows * columns);
  for (int64_t place = 0; place < rows * columns; ++place)
    for (int64_t t = 0; t < conv.taps(); ++t) {
      const int64_t pixel = pixel_of(place / columns, place % columns, t / conv.kernel, t % conv.kernel);
      if (pixel >= 0) found[place].push_back({pixel * kGroup, weights + t * kGroup * kGroup});
    }
  return found;
}

// All places of all images `to`, [samples, rows, columns, channels], from the images `from`, of `pixels` pixels each.
template <class PixelOf>
void convolve_small(const GroupConv& conv, const float* from, int64_t pixels, const float* weights, float* to,
                    int64_t rows, int64_t columns, PixelOf pixel_of) {
  const int64_t size = rows * columns, even = (conv.samples + Pool::get().size() - 1) / Pool::get().size();
  const int64_t most = std::min(even, kTogether / (pixels * kGroup)), chunk = std::max<int64_t>(1, most / kTile) * kTile;
  const int64_t chunks = (conv.samples + chunk - 1) / chunk;
  Pool::get().run(conv.groups() * chunks, [&](int64_t task) {
    static thread_local Aligned memory;
    const int64_t g = task / chunks, begin = task % chunks * chunk, count = std::min(chunk, conv.samples - begin);
    float* images = memory.get(count * pixels * kGroup);
    gather(from + begin * pixels * conv.channels + g * kGroup, count, pixels, conv.channels, images);
    const auto taps = places(conv, rows, columns, weights + g * conv.taps() * kGroup * kGroup, pixel_of);
    const int64_t together = tile_size(count);
    const Tile run = tile_of(together);
    for (int64_t place = 0; place < size; ++place)
      for (int64_t first = 0; first < count; first += together) {
        const float* in[kTile];
        float* out[kTile];
        for (int64_t j = 0, n = std::min(first, count - together); j < together; ++j, ++n) {
          in[j] = images + n * pixels * kGroup;
          out[j] = to + ((begin + n) * size + place) * conv.channels + g * kGroup;
        }
        run(in, taps[place], out, false);
      }
  });
}

inline int64_t pixel(int64_t row, int64_t column, int64_t rows, int64_t columns) {
  return row < 0 || row >= rows || column < 0 || column >= columns ? -1 : row * columns + column;
}

inline void small_group_conv(const GroupConv& conv, const float* x, const float* kernel, float* y) {
  Aligned packed;
  const float* weights = pack_weights(conv, kernel, false, packed);
  convolve_small(conv, x, conv.height * conv.width, weights, y, conv.out_height, conv.out_width,
                 [&](int64_t row, int64_t column, int64_t ky, int64_t kx) {
                   return pixel(row * conv.stride + ky - conv.top, column * conv.stride + kx - conv.left, conv.height,
                                conv.width);
                 });
}

inline void small_input_gradient(const GroupConv& conv, const float* dy, const float* kernel, float* dx) {
  Aligned packed;
  const float* weights = pack_weights(conv, kernel, true, packed);
  convolve_small(conv, dy, conv.out_height * conv.out_width, weights, dx, conv.height, conv.width,
                 [&](int64_t row, int64_t column, int64_t ky, int64_t kx) {
                   const int64_t down = row + conv.top - ky, across = column + conv.left - kx;
                   if (down % conv.stride || across % conv.stride) return int64_t(-1);
                   return pixel(down / conv.stride, across / conv.stride, conv.out_height, conv.out_width);
                 });
}

inline void small_kernel_gradient(const GroupConv& conv, const float* dy, const float* x, float* dkernel) {
  const int64_t pixels = conv.height * conv.width, out_pixels = conv.out_height * conv.out_width;
  const int64_t chunk = std::max<int64_t>(1, kGradients / ((pixels + out_pixels) * kGroup));
  std::vector<std::vector<Pair>> pairs(conv.taps());
  for (int64_t t = 0; t < conv.taps(); ++t)
    for (int64_t place = 0; place < out_pixels; ++place) {
      const int64_t row = place / conv.out_width * conv.stride + t / conv.kernel - conv.top;
      const int64_t column = place % conv.out_width * conv.stride + t % conv.kernel - conv.left;
      const int64_t from = pixel(row, column, conv.height, conv.width);
      if (from >= 0) pairs[t].push_back({int32_t(from * kGroup), int32_t(place * kGroup)});
    }
  sum_kernel_gradient(conv, dkernel, [&](int64_t g, int64_t first, int64_t end, float* own) {
    static thread_local Aligned memory, more_memory;
    for (int64_t n = first; n < end; n += chunk) {
      const int64_t count = std::min(chunk, end - n);
      float* images = memory.get(count * pixels * kGroup);
      float* gradients = more_memory.get(count * out_pixels * kGroup);
      gather(x + n * pixels * conv.channels + g * kGroup, count, pixels, conv.channels, images);
      gather(dy + n * out_pixels * conv.channels + g * kGroup, count, out_pixels, conv.channels, gradients);
      for (int64_t t = 0; t < conv.taps(); ++t)
        add_products(images, pixels * kGroup, gradients, out_pixels * kGroup, count, pairs[t],
                     own + t * kGroup * kGroup);
    }
  });
}

#endif  // AVX2
#endif  // G16_GROUP_CONV
