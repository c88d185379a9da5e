// Bilinear resize of one uint8 image, byte for byte what ResizeBilinear, adding 0.5 and the cast to uint8 give.
//
// That asks for their float32 arithmetic in their order: across, then down, each product rounded before it is added.
// Every row of the image that is needed is resized across once, and the newest two are kept. Part of `exact.h`.

#pragma once

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "resize_across takes apart numbers of several bytes");

// Output i lies between the inputs `at` and `at + 1`, by `weight` nearer to the second.
struct Tap {
  int64_t at;
  float weight;
};

inline Tap tap(int64_t i, int64_t outputs, int64_t inputs, bool half_pixel_centers) {
  const float scale = float(inputs) / float(outputs);
  const float place = half_pixel_centers ? (float(i) + 0.5f) * scale - 0.5f : float(i) * scale;
  const float low = std::floor(place);
  if (low < 0) return {0, 0.f};
  if (low >= float(inputs - 1)) return {inputs - 1, 0.f};
  return {int64_t(low), place - low};
}

// `left` and `right` are each pixel's two inputs, next to each other, so that the second loop vectorises. Up to 8 bytes
// are read behind a row and up to 1 written behind `left` and `right`.
inline void resize_across(const uint8_t* row, const std::vector<int64_t>& at, const float* __restrict weights,
                          int64_t channels, uint8_t* __restrict left, uint8_t* __restrict right, float* __restrict to) {
  const int64_t width = int64_t(at.size());
  if (channels == 3) {
#pragma GCC unroll 4
    for (int64_t x = 0; x < width; ++x) {
      uint64_t both;  // one read for both is a tenth faster
      std::memcpy(&both, row + at[x], 8);
      const uint32_t first = uint32_t(both), second = uint32_t(both >> 24);
      std::memcpy(left + 3 * x, &first, 4);
      std::memcpy(right + 3 * x, &second, 4);
    }
  } else {
    for (int64_t x = 0; x < width; ++x) {
      std::copy_n(row + at[x], channels, left + channels * x);
      std::copy_n(row + at[x] + channels, channels, right + channels * x);
    }
  }
  for (int64_t i = 0; i < width * channels; ++i) {
    const float l = left[i], r = right[i];
    to[i] = l + (r - l) * weights[i];
  }
}

inline void resize_down(const float* __restrict top, const float* __restrict bottom, float weight, int64_t lanes,
                        uint8_t* __restrict to) {
  for (int64_t i = 0; i < lanes; ++i) to[i] = uint8_t(int32_t(top[i] + (bottom[i] - top[i]) * weight + 0.5f));
}

// From [height, width, channels] to [to_height, to_width, channels], none of them 0; `flip` mirrors left to right.
inline void resize(const uint8_t* image, int64_t height, int64_t width, int64_t channels, int64_t to_height,
                   int64_t to_width, bool flip, bool half_pixel_centers, uint8_t* to) {
  const int64_t lanes = to_width * channels, stride = width * channels, margin = std::max<int64_t>(8, channels);
  std::vector<int64_t> at(to_width);
  std::vector<float> weights(lanes), rows(2 * lanes);
  for (int64_t x = 0; x < to_width; ++x) {
    const int64_t place = flip ? to_width - 1 - x : x;
    Tap across = tap(x, to_width, width, half_pixel_centers);
    if (across.at == width - 1 && width > 1) across = {width - 2, 1.f};  // the same, for integers
    at[place] = across.at * channels;
    std::fill_n(&weights[place * channels], channels, across.weight);
  }
  std::vector<uint8_t> left(lanes + 1), right(lanes + 1), last(stride + margin);
  int64_t kept[2] = {-1, -1};
  const auto row = [&](int64_t y) {
    float* across = &rows[y % 2 * lanes];
    if (kept[y % 2] == y) return across;
    kept[y % 2] = y;
    const uint8_t* from = image + y * stride;
    if ((height - 1 - y) * stride < margin) {  // nothing lies behind the last row
      std::copy_n(from, stride, last.data());
      from = last.data();
    }
    resize_across(from, at, weights.data(), channels, left.data(), right.data(), across);
    return across;
  };
  for (int64_t y = 0; y < to_height; ++y) {
    const Tap down = tap(y, to_height, height, half_pixel_centers);
    const float *top = row(down.at), *bottom = row(std::min(down.at + 1, height - 1));
    resize_down(top, bottom, down.weight, lanes, to + y * lanes);
  }
}
