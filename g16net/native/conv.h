// Convolution in groups of 16 channels, forward and backward, for CPUs with AVX-512 or AVX2.
//
// A group is one vector (two with AVX2): of a pixel, of an output, and of each row of its 16 x 16 weights. So an output
// is a sum over taps (a place of the kernel) and channels of a number of the input times a vector of weights. A tile of
// up to 28 outputs (6 with AVX2) stays in registers while a vector of weights meets one number of each.
//
// The rows that a block of outputs reads are first copied, one group at a time, to a buffer that stays in the cache:
// with zeros around the image, and with columns apart by the stride next to each other. Each sum's order depends on the
// shapes alone; neither threads nor batch mates change a bit of the result, but for the sum over the samples in the
// kernel's gradient, which the batch changes.

#pragma once

#include "vectors.h"

#if defined(G16_GROUP_CONV)

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pool.h"

constexpr int64_t kBuffer = 1 << 14;  // numbers of a buffer, about: 64 KB
constexpr int64_t kCache = 1 << 23;   // bytes beyond which a result is not expected to stay in the cache

// Memory of a thread, at the start of a cache line.
class Aligned {
 public:
  float* get(int64_t size) {
    if (int64_t(memory_.size()) < size + 16) memory_.resize(size + 16);
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) & ~uintptr_t(63));
  }

 private:
  std::vector<float> memory_;
};

struct Range {
  int64_t begin, end;
};

struct GroupConv {
  GroupConv(int64_t samples, int64_t height, int64_t width, int64_t channels, int64_t kernel, int64_t stride)
      : samples(samples),
        height(height),
        width(width),
        channels(channels),
        kernel(kernel),
        stride(stride),
        out_height((height + stride - 1) / stride),
        out_width((width + stride - 1) / stride),
        top(std::max<int64_t>(0, (out_height - 1) * stride + kernel - height) / 2),
        left(std::max<int64_t>(0, (out_width - 1) * stride + kernel - width) / 2) {}

  int64_t groups() const { return channels / kGroup; }
  int64_t taps() const { return kernel * kernel; }
  bool empty() const { return samples * height * width == 0; }

  // Of the outputs [begin, end) those that read inside of the image's [0, size) `shift` from output * stride on.
  Range inside(int64_t shift, int64_t size, int64_t begin, int64_t end) const {
    Range range{begin, end};
    while (range.begin < end && range.begin * stride + shift < 0) ++range.begin;
    while (range.end > range.begin && (range.end - 1) * stride + shift >= size) --range.end;
    return range;
  }

  int64_t samples, height, width, channels, kernel, stride, out_height, out_width, top, left;
};

// One group of rows [first, first + rows) of an image [height, width, channels] to [rows, stride, columns / stride,
// 16], from the column -left on; zeros outside.
inline void pack(const float* image, int64_t height, int64_t width, int64_t channels, int64_t first, int64_t rows,
                 int64_t left, int64_t columns, int64_t stride, float* to) {
  const int64_t row_size = columns * kGroup, apart = columns / stride;
  for (int64_t r = first; r < first + rows; ++r, to += row_size) {
    if (r < 0 || r >= height) {
      std::fill_n(to, row_size, 0.f);
      continue;
    }
    const float* row = image + r * width * channels;
    for (int64_t phase = 0; phase < stride; ++phase) {
      float* at = to + phase * apart * kGroup;
      for (int64_t i = 0, c = phase - left; i < apart; ++i, c += stride, at += kGroup) {
        if (c < 0 || c >= width)
          std::fill_n(at, kGroup, 0.f);
        else
          copy_group(row + c * channels, at);
      }
    }
  }
}

// The kernel [taps, 16, channels] as [groups, taps, 16, 16]: by inputs, or by outputs where `transposed`.
inline const float* pack_weights(const GroupConv& conv, const float* kernel, bool transposed, Aligned& memory) {
  const int64_t block = kGroup * kGroup;
  float* to = memory.get(conv.groups() * conv.taps() * block);
  for (int64_t g = 0; g < conv.groups(); ++g)
    for (int64_t t = 0; t < conv.taps(); ++t) {
      float* weights = to + (g * conv.taps() + t) * block;
      for (int64_t i = 0; i < kGroup; ++i)
        for (int64_t o = 0; o < kGroup; ++o)
          weights[transposed ? o * kGroup + i : i * kGroup + o] =
              kernel[(t * kGroup + i) * conv.channels + g * kGroup + o];
    }
  return to;
}

// Rows in a block whose buffer has about `kBuffer` numbers, with `row_size` a row.
inline int64_t block_rows(int64_t rows, int64_t row_size) {
  const int64_t most = std::max<int64_t>(4, kBuffer / row_size), blocks = (rows + most - 1) / most;
  return (rows + blocks - 1) / blocks;
}

// How the input lies in a buffer, for the forward pass and the gradient of the kernel.
struct InputRows {
  explicit InputRows(const GroupConv& conv)
      : conv(conv),
        columns(((conv.out_width - 1) * conv.stride + conv.kernel + conv.stride - 1) / conv.stride * conv.stride),
        row_size(columns * kGroup) {}

  int64_t rows(int64_t out_rows) const { return (out_rows - 1) * conv.stride + conv.kernel; }
  int64_t offset(int64_t ky, int64_t kx) const {
    return ky * row_size + (kx % conv.stride * (columns / conv.stride) + kx / conv.stride) * kGroup;
  }

  void read(const float* x, int64_t n, int64_t g, int64_t out_row, int64_t out_rows, float* to) const {
    pack(x + n * conv.height * conv.width * conv.channels + g * kGroup, conv.height, conv.width, conv.channels,
         out_row * conv.stride - conv.top, rows(out_rows), conv.left, columns, conv.stride, to);
  }

  const GroupConv& conv;
  int64_t columns, row_size;
};

// Tasks of `samples` images in `blocks`; several small images make one, for which weights are read once.
struct Tasks {
  Tasks(int64_t samples, int64_t rows, int64_t row_size)
      : samples(samples), rows(rows), block(block_rows(rows, row_size)), blocks((rows + block - 1) / block) {
    if (blocks == 1)
      together = std::max<int64_t>(1, std::min(kBuffer / (rows * row_size), samples / (2 * Pool::get().size())));
  }

  // body(samples [first, last), their rows [row, row + count), groups [group, last group)); the groups are shared out
  // where there are fewer tasks than threads.
  template <class Body>
  void run(int64_t groups, Body body) const {
    const int64_t count = (samples + together - 1) / together * blocks, threads = Pool::get().size();
    const int64_t shares = count == 0 ? 1 : std::min(groups, (threads + count - 1) / count);
    Pool::get().run(count * shares, [&](int64_t index) {
      const int64_t task = index / shares, share = index % shares;
      const int64_t first = task / blocks * together, row = task % blocks * block;
      body(first, std::min(samples, first + together), row, std::min(block, rows - row), share * groups / shares,
           (share + 1) * groups / shares);
      _mm_sfence();  // other threads see what went past the cache
    });
  }

  int64_t samples, rows, block, blocks, together = 1;
};

inline bool past_cache(const float* out, int64_t size) {
  return size * 4 > kCache && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

inline void group_conv(const GroupConv& conv, const float* x, const float* kernel, float* y) {
  Aligned packed;
  const float* weights = pack_weights(conv, kernel, false, packed);
  const InputRows input(conv);
  const int64_t out_row = conv.out_width * conv.channels;
  const bool past = past_cache(y, conv.samples * conv.out_height * out_row);
  const Tasks tasks(conv.samples, conv.out_height, conv.stride * input.row_size);
  tasks.run(conv.groups(), [&](int64_t first, int64_t last, int64_t row, int64_t rows, int64_t group, int64_t end) {
    static thread_local Aligned memory;
    float* buffer = memory.get(input.rows(rows) * input.row_size);
    std::vector<Place> taps(conv.taps());
    for (int64_t g = group; g < end; ++g) {
      for (int64_t t = 0; t < conv.taps(); ++t)
        taps[t] = {input.offset(t / conv.kernel, t % conv.kernel), weights + (g * conv.taps() + t) * kGroup * kGroup};
      for (int64_t n = first; n < last; ++n) {
        input.read(x, n, g, row, rows, buffer);
        cover(rows, conv.out_width, buffer, conv.stride * input.row_size, taps,
              y + (n * conv.out_height + row) * out_row + g * kGroup, out_row, conv.channels, past);
      }
    }
  });
}

inline int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// The gradient of x. Its pixels are taken by their place modulo the stride, each with the taps that reach it: a
// convolution with stride 1 over dy.
inline void group_conv_input_gradient(const GroupConv& conv, const float* dy, const float* kernel, float* dx) {
  Aligned packed;
  const float* weights = pack_weights(conv, kernel, true, packed);
  const int64_t s = conv.stride, rows_of_class = (conv.height + s - 1) / s, columns_of_class = (conv.width + s - 1) / s;
  // Places of dy from that of dx / stride, least and most.
  const int64_t least_row = floor_divide(conv.top - conv.kernel + 1, s), most_row = floor_divide(s - 1 + conv.top, s);
  const int64_t least = floor_divide(conv.left - conv.kernel + 1, s), most = floor_divide(s - 1 + conv.left, s);
  const int64_t columns = columns_of_class + most - least, row_size = columns * kGroup;
  const bool past = past_cache(dx, conv.samples * conv.height * conv.width * conv.channels);
  const Tasks tasks(conv.samples, rows_of_class, row_size);
  tasks.run(conv.groups(), [&](int64_t first, int64_t last, int64_t row, int64_t rows, int64_t group, int64_t end) {
    static thread_local Aligned memory;
    const int64_t held = rows + most_row - least_row, out_row = conv.width * conv.channels;
    float* buffer = memory.get(held * row_size);
    std::vector<std::vector<Place>> taps(s * s);  // of each class
    for (int64_t g = group; g < end; ++g) {
      for (int64_t place = 0; place < s * s; ++place) {
        taps[place].clear();
        for (int64_t t = 0; t < conv.taps(); ++t) {
          const int64_t y = place / s + conv.top - t / conv.kernel, x = place % s + conv.left - t % conv.kernel;
          if (y % s || x % s) continue;
          taps[place].push_back({((y / s - least_row) * columns + x / s - least) * kGroup,
                                 weights + (g * conv.taps() + t) * kGroup * kGroup});
        }
      }
      for (int64_t n = first; n < last; ++n) {
        pack(dy + n * conv.out_height * conv.out_width * conv.channels + g * kGroup, conv.out_height, conv.out_width,
             conv.channels, row + least_row, held, -least, columns, 1, buffer);
        for (int64_t place = 0; place < s * s; ++place) {
          const int64_t y = place / s, x = place % s;
          const int64_t own_rows = std::min(rows, (conv.height - y + s - 1) / s - row);
          const int64_t own_columns = (conv.width - x + s - 1) / s;
          if (own_rows < 1 || own_columns < 1) continue;
          cover(own_rows, own_columns, buffer, row_size, taps[place],
                dx + (n * conv.height + row * s + y) * out_row + x * conv.channels + g * kGroup, s * out_row,
                s * conv.channels, past);
        }
      }
    }
  });
}

// The gradient of the kernel, of parts: part(group, samples [first, end), its sums [taps, 16, 16], zeros at first).
template <class Part>
void sum_kernel_gradient(const GroupConv& conv, float* dkernel, Part part) {
  const int64_t size = conv.taps() * kGroup * kGroup,
                parts = std::max<int64_t>(1, std::min(conv.samples, 64 / conv.groups() + 1));
  const int64_t samples = (conv.samples + parts - 1) / parts;
  Aligned all;
  float* sums = all.get(conv.groups() * parts * size);
  Pool::get().run(conv.groups() * parts, [&](int64_t task) {
    const int64_t first = task % parts * samples, end = std::min(conv.samples, first + samples);
    float* own = sums + task * size;
    std::fill_n(own, size, 0.f);
    if (first < end) part(task / parts, first, end, own);
  });
  for (int64_t g = 0; g < conv.groups(); ++g)
    for (int64_t row = 0; row < conv.taps() * kGroup; ++row)
      for (int64_t o = 0; o < kGroup; ++o) {
        float sum = 0;
        for (int64_t p = 0; p < parts; ++p) sum += sums[(g * parts + p) * size + row * kGroup + o];
        dkernel[row * conv.channels + g * kGroup + o] = sum;
      }
}

inline void group_conv_kernel_gradient(const GroupConv& conv, const float* dy, const float* x, float* dkernel) {
  const InputRows input(conv);
  const int64_t block = block_rows(conv.out_height, conv.stride * input.row_size + conv.out_width * kGroup);
  sum_kernel_gradient(conv, dkernel, [&](int64_t g, int64_t begin, int64_t end, float* own) {
    static thread_local Aligned memory, more_memory;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t first = 0; first < conv.out_height; first += block) {
        const int64_t rows = std::min(block, conv.out_height - first);
        float* buffer = memory.get(input.rows(rows) * input.row_size);
        float* gradient = more_memory.get(rows * conv.out_width * kGroup);
        input.read(x, n, g, first, rows, buffer);
        pack(dy + n * conv.out_height * conv.out_width * conv.channels + g * kGroup, conv.out_height, conv.out_width,
             conv.channels, first, rows, 0, conv.out_width, 1, gradient);
        const int64_t dy_row = conv.out_width * kGroup;
        for (int64_t t = 0; t < conv.taps(); ++t) {
          const int64_t ky = t / conv.kernel, kx = t % conv.kernel;
          const Range down = conv.inside(ky - conv.top, conv.height, first, first + rows);
          const Range across = conv.inside(kx - conv.left, conv.width, 0, conv.out_width);
          const int64_t r = down.begin - first, c = across.begin;
          add_products(buffer + r * conv.stride * input.row_size + c * kGroup + input.offset(ky, kx),
                       conv.stride * input.row_size, gradient + r * dy_row + c * kGroup, dy_row, down.end - down.begin,
                       across.end - c, own + t * kGroup * kGroup);
        }
      }
  });
}

#endif  // G16_GROUP_CONV
