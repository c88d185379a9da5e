// The norm-activation and the gate of squeeze-and-excite, forward and backward, on plain arrays.
//
// Their time is that of their passes over memory: a graph of TensorFlow's operations reads and writes a large tensor
// some ten times, these read it once from memory and once more from the cache. One sample is one task; where samples
// are few, they are cut into chunks of pixels. The order of every sum depends on the shape of one sample alone, so
// neither threads nor batch mates change a bit of the result.
//
// Loops run over lines: as many pixels as make a few hundred numbers, next to each other in memory, with the numbers a
// channel repeated to the same length. So all channel counts vectorise alike, by the compiler alone. Sums are float32
// within a chunk (some dozens of terms a lane) and float64 beyond.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "pool.h"

// An output may lie in the memory of an input, number over number, so iterations are independent either way.
#if defined(__clang__)
#define INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

struct BFloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float load(float value) { return value; }
inline float load(BFloat16 value) { return as_float(uint32_t(value.bits) << 16); }

inline void store(float value, float* to) { *to = value; }
inline void store(float value, BFloat16* to) {
  const uint32_t bits = as_bits(value);
  const uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool not_a_number = (bits & 0x7fffffff) > 0x7f800000;  // in integers, for the compiler takes floats as finite
  to->bits = uint16_t(not_a_number ? 0x7fc0 : nearest_even);
}

// exp(x), relative error below 2e-7, for x clamped to +-88: 2^n * (1 + r + r^2 p(r)), the polynomial of Cephes' expf.
inline float exponential(float x) {
  x = x < -88.f ? -88.f : x;
  x = x > 88.f ? 88.f : x;
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which ends in the low bits
  const float shifted = x * 1.44269504f + shift;
  const float n = shifted - shift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  return as_float(as_bits(p) + (as_bits(shifted) << 23));
}

struct Swish {
  static float value(float u) { return u / (1.f + exponential(-u)); }
  static float value_and_slope(float u, float* slope) {
    const float gate = 1.f / (1.f + exponential(-u));
    const float z = u * gate;
    *slope = gate + z * (1.f - gate);
    return z;
  }
};

struct Relu {
  // By the bits, in which -inf..-0 are 0x80000000..0xff800000: a comparison of floats would turn NaN into 0.
  static float value(float u) { return as_bits(u) - 0x80000000u <= 0x7f800000u ? 0.f : u; }
  static float value_and_slope(float u, float* slope) {
    *slope = u > 0.f ? 1.f : 0.f;
    return value(u);
  }
};

struct Relu6 {
  static float value(float u) {
    const float z = Relu::value(u);
    return as_bits(z) - 0x40c00001u <= 0x7f800000u - 0x40c00001u ? 6.f : z;  // by the bits too: above 6 up to inf
  }
  static float value_and_slope(float u, float* slope) {
    *slope = u > 0.f && u < 6.f ? 1.f : 0.f;
    return value(u);
  }
};

struct Linear {
  static float value(float u) { return u; }
  static float value_and_slope(float u, float* slope) {
    *slope = 1.f;
    return u;
  }
};

// How a tensor [samples, pixels, channels] is walked.
struct Walk {
  Walk(int64_t samples, int64_t pixels, int64_t channels) : samples(samples), pixels(pixels), channels(channels) {
    int64_t unit = 1;  // pixels whose channels fill whole vectors
    while (unit < 16 && unit * channels % 16) unit *= 2;
    if (unit * channels > 4096) unit = 1;
    line = std::max<int64_t>(1, 512 / std::max<int64_t>(1, unit * channels)) * unit;
    const int64_t lines = (pixels + line - 1) / line, wanted = std::max<int64_t>(1, pixels * channels / 32768);
    chunk = std::max<int64_t>(1, (lines + wanted - 1) / wanted * line);  // without pixels there are no chunks
    chunks = (pixels + chunk - 1) / chunk;
  }

  int64_t lanes() const { return line * channels; }
  int64_t begin(int64_t sample, int64_t j) const { return (sample * pixels + j * chunk) * channels; }
  int64_t length(int64_t j) const { return std::min(chunk, pixels - j * chunk) * channels; }

  // Calls body(offset, lanes) for every line of a chunk.
  template <class Body>
  void lines(int64_t sample, int64_t j, Body body) const {
    const int64_t first = begin(sample, j), end = first + length(j);
    for (int64_t at = first; at < end; at += lanes()) body(at, int(std::min(lanes(), end - at)));
  }

  int64_t samples, pixels, channels;
  int64_t line;    // pixels of a line
  int64_t chunk;   // pixels of a chunk
  int64_t chunks;  // of a sample
};

// Memory for one task, kept by its thread: arrays of `lanes` floats.
class Lanes {
 public:
  explicit Lanes(const Walk& walk) : walk_(walk) {}

  float* zeros() {
    float* to = next();
    std::fill_n(to, walk_.lanes(), 0.f);
    return to;
  }

  // A number a channel, function(channel), repeated for each pixel of a line.
  template <class Function>
  float* repeat(Function function) {
    float* to = next();
    for (int64_t c = 0; c < walk_.channels; ++c) to[c] = function(c);
    for (int64_t p = 1; p < walk_.line; ++p) std::copy_n(to, walk_.channels, to + p * walk_.channels);
    return to;
  }

  // sums[channel] += the lanes of that channel.
  void fold(const float* from, double* sums) const {
    for (int64_t p = 0; p < walk_.line; ++p, from += walk_.channels)
      for (int64_t c = 0; c < walk_.channels; ++c) sums[c] += from[c];
  }

 private:
  float* next() {
    static thread_local std::vector<float> memory[16];
    std::vector<float>& array = memory[used_++];
    if (array.size() < size_t(walk_.lanes())) array.resize(walk_.lanes());
    return array.data();
  }

  const Walk& walk_;
  int used_ = 0;
};

// For every sample: sums of every chunk, partial(n, j, sums) with `kinds` x channels float64 numbers; finish(n, sums)
// with their total; then apply(n, j) for every chunk, while the sample is in the cache.
template <class Partial, class Finish, class Apply>
void two_passes(const Walk& walk, int kinds, Partial partial, Finish finish, Apply apply) {
  Pool& pool = Pool::get();
  const int64_t size = kinds * walk.channels;
  const auto add = [&](const double* part, std::vector<double>& total) {
    for (int64_t i = 0; i < size; ++i) total[i] += part[i];
  };
  if (walk.samples >= 4 * pool.size() || walk.chunks < 2 || pool.size() < 2) {
    pool.run(walk.samples, [&](int64_t n) {
      std::vector<double> part(size), total(size);
      for (int64_t j = 0; j < walk.chunks; ++j) {
        std::fill(part.begin(), part.end(), 0.);
        partial(n, j, part.data());
        add(part.data(), total);
      }
      finish(n, total.data());
      for (int64_t j = 0; j < walk.chunks; ++j) apply(n, j);
    });
    return;
  }
  const int64_t tasks = walk.samples * walk.chunks;
  std::vector<double> parts(tasks * size);
  pool.run(tasks, [&](int64_t t) { partial(t / walk.chunks, t % walk.chunks, &parts[t * size]); });
  for (int64_t n = 0; n < walk.samples; ++n) {
    std::vector<double> total(size);
    for (int64_t j = 0; j < walk.chunks; ++j) add(&parts[(n * walk.chunks + j) * size], total);
    finish(n, total.data());
  }
  pool.run(tasks, [&](int64_t t) { apply(t / walk.chunks, t % walk.chunks); });
}

// As `two_passes`, where only the sums are wanted.
template <class Partial, class Finish>
void one_pass(const Walk& walk, int kinds, Partial partial, Finish finish) {
  two_passes(walk, kinds, partial, finish, [](int64_t, int64_t) {});
}

struct Config {
  int groups = 1;  // 0: x is normalised already
  bool strided = false;
  float epsilon = 1e-3f;
  std::string activation = "swish";

  int group(int64_t channel, int64_t channels) const {
    return int(strided ? channel % groups : channel / (channels / groups));
  }
};

// Numbers a channel.
struct Channels {
  const float *gamma, *beta, *centre, *scale;
};

// y = (activation(gamma * (x - mean) * inv_std + beta) - centre) * scale; mean, inv_std and pooled, the pixel mean of
// y, are [samples, channels].
template <class T, class Activation>
void forward(const Walk& walk, const Config& config, const T* x, const Channels& given, T* y, float* mean,
             float* inv_std, float* pooled) {
  const int64_t channels = walk.channels;
  if (!walk.pixels) {  // no numbers have no mean: TensorFlow's is NaN
    for (float* moments : {mean, inv_std, pooled}) std::fill_n(moments, walk.samples * channels, as_float(0x7fc00000));
    return;
  }
  // Squares of differences from the first pixel, which is near enough to the mean of its channel to cancel little.
  const auto statistics = [&](int64_t n, int64_t j, double* sums) {
    if (!config.groups) return;
    const T* first = x + walk.begin(n, 0);
    Lanes lanes(walk);
    const float* shift = lanes.repeat([&](int64_t c) { return load(first[c]); });
    float *sum = lanes.zeros(), *squares = lanes.zeros();
    walk.lines(n, j, [&](int64_t at, int length) {
      const T* line = x + at;
INDEPENDENT_ITERATIONS
      for (int i = 0; i < length; ++i) {
        const float difference = load(line[i]) - shift[i];
        sum[i] += difference;
        squares[i] += difference * difference;
      }
    });
    lanes.fold(sum, sums);
    lanes.fold(squares, sums + channels);
  };
  const auto combine = [&](int64_t n, const double* sums) {
    const T* first = x + walk.begin(n, 0);
    float *means = mean + n * channels, *inv_stds = inv_std + n * channels;
    if (!config.groups) {
      std::fill_n(means, channels, 0.f);
      std::fill_n(inv_stds, channels, 1.f);
      return;
    }
    std::vector<double> group_mean(config.groups), group_squares(config.groups), channel_mean(channels);
    const double width = double(channels / config.groups), pixels = double(walk.pixels);
    for (int64_t c = 0; c < channels; ++c) {
      channel_mean[c] = load(first[c]) + sums[c] / pixels;
      group_mean[config.group(c, channels)] += channel_mean[c] / width;
    }
    for (int64_t c = 0; c < channels; ++c) {  // squares within the channel, and between the channels
      const int g = config.group(c, channels);
      const double offset = sums[c] / pixels, between = channel_mean[c] - group_mean[g];
      group_squares[g] += std::max(0., sums[channels + c] / pixels - offset * offset) + between * between;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const int g = config.group(c, channels);
      means[c] = float(group_mean[g]);
      inv_stds[c] = float(1. / std::sqrt(group_squares[g] / width + double(config.epsilon)));
    }
  };
  // The pooled sums come from the second pass; they meet in the order of the chunks.
  std::vector<double> pool_parts(walk.samples * walk.chunks * channels);
  const auto apply = [&](int64_t n, int64_t j) {
    const float *means = mean + n * channels, *inv_stds = inv_std + n * channels;
    Lanes lanes(walk);
    const float* m = lanes.repeat([&](int64_t c) { return means[c]; });
    const float* a = lanes.repeat([&](int64_t c) { return inv_stds[c] * given.gamma[c]; });
    const float* b = lanes.repeat([&](int64_t c) { return given.beta[c]; });
    const float* centre = lanes.repeat([&](int64_t c) { return given.centre[c]; });
    const float* scale = lanes.repeat([&](int64_t c) { return given.scale[c]; });
    float* sum = lanes.zeros();
    walk.lines(n, j, [&](int64_t at, int length) {
      const T* from = x + at;
      T* to = y + at;
INDEPENDENT_ITERATIONS
      for (int i = 0; i < length; ++i) {
        const float u = (load(from[i]) - m[i]) * a[i] + b[i];
        const float out = (Activation::value(u) - centre[i]) * scale[i];
        sum[i] += out;
        store(out, to + i);
      }
    });
    lanes.fold(sum, &pool_parts[(n * walk.chunks + j) * channels]);
  };
  two_passes(walk, 2, statistics, combine, apply);
  for (int64_t n = 0; n < walk.samples; ++n)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < walk.chunks; ++j) sum += pool_parts[(n * walk.chunks + j) * channels + c];
      pooled[n * channels + c] = float(sum / double(walk.pixels));
    }
}

// The gradients with respect to x and the numbers a channel, from those with respect to y and pooled.
template <class T, class Activation>
void backward(const Walk& walk, const Config& config, const T* dy, const float* dpooled, const T* x,
              const Channels& given, const float* mean, const float* inv_std, T* dx, float* dgamma, float* dbeta,
              float* dcentre, float* dscale) {
  const int64_t channels = walk.channels, samples = walk.samples;
  std::vector<double> totals(samples * 4 * channels);            // sums over the pixels
  std::vector<float> mean_du(samples * channels), mean_dun(samples * channels);  // over a group

  struct Line {
    const float *m, *r, *gamma, *beta, *dpool;
  };
  const auto parameters = [&](Lanes& lanes, int64_t n) {
    Line line;
    line.m = lanes.repeat([&](int64_t c) { return mean[n * channels + c]; });
    line.r = lanes.repeat([&](int64_t c) { return inv_std[n * channels + c]; });
    line.gamma = lanes.repeat([&](int64_t c) { return given.gamma[c]; });
    line.beta = lanes.repeat([&](int64_t c) { return given.beta[c]; });
    line.dpool = lanes.repeat([&](int64_t c) { return dpooled[n * channels + c] / float(walk.pixels); });
    return line;
  };
  const auto sum = [&](int64_t n, int64_t j, double* sums) {
    Lanes lanes(walk);
    const Line p = parameters(lanes, n);
    float *s0 = lanes.zeros(), *s1 = lanes.zeros(), *s2 = lanes.zeros(), *s3 = lanes.zeros();
    walk.lines(n, j, [&](int64_t at, int length) {
      const T *from = x + at, *gradient = dy + at;
INDEPENDENT_ITERATIONS
      for (int i = 0; i < length; ++i) {
        const float normal = (load(from[i]) - p.m[i]) * p.r[i];
        float slope;
        const float z = Activation::value_and_slope(normal * p.gamma[i] + p.beta[i], &slope);
        const float d = load(gradient[i]) + p.dpool[i], du = d * slope;
        s0[i] += d;
        s1[i] += d * z;
        s2[i] += du;
        s3[i] += du * normal;
      }
    });
    const float* kinds[] = {s0, s1, s2, s3};
    for (int k = 0; k < 4; ++k) lanes.fold(kinds[k], sums + k * channels);
  };
  // With n = (x - mean) * inv_std, du = dy * scale * slope and means over the group:
  // dx = inv_std * (gamma * du - mean(gamma * du) - n * mean(gamma * du * n))
  const auto combine = [&](int64_t n, const double* sums) {
    std::copy_n(sums, 4 * channels, &totals[n * 4 * channels]);
    if (!config.groups) return;
    std::vector<double> du(config.groups), dun(config.groups);
    const double count = double(channels / config.groups) * double(walk.pixels);
    for (int64_t c = 0; c < channels; ++c) {
      const double factor = double(given.gamma[c]) * given.scale[c] / count;
      du[config.group(c, channels)] += factor * sums[2 * channels + c];
      dun[config.group(c, channels)] += factor * sums[3 * channels + c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean_du[n * channels + c] = float(du[config.group(c, channels)]);
      mean_dun[n * channels + c] = float(dun[config.group(c, channels)]);
    }
  };
  const auto apply = [&](int64_t n, int64_t j) {
    Lanes lanes(walk);
    const Line p = parameters(lanes, n);
    const float* r = inv_std + n * channels;
    const float* a = lanes.repeat([&](int64_t c) { return r[c] * given.gamma[c] * given.scale[c]; });
    const float* constant = lanes.repeat([&](int64_t c) { return r[c] * mean_du[n * channels + c]; });
    const float* linear = lanes.repeat([&](int64_t c) { return r[c] * mean_dun[n * channels + c]; });
    walk.lines(n, j, [&](int64_t at, int length) {
      const T *from = x + at, *gradient = dy + at;
      T* to = dx + at;
INDEPENDENT_ITERATIONS
      for (int i = 0; i < length; ++i) {
        const float normal = (load(from[i]) - p.m[i]) * p.r[i];
        float slope;
        Activation::value_and_slope(normal * p.gamma[i] + p.beta[i], &slope);
        store((load(gradient[i]) + p.dpool[i]) * slope * a[i] - (constant[i] + normal * linear[i]), to + i);
      }
    });
  };
  two_passes(walk, 4, sum, combine, apply);
  for (int64_t c = 0; c < channels; ++c) {
    double s[4] = {};
    for (int64_t n = 0; n < samples; ++n)
      for (int k = 0; k < 4; ++k) s[k] += totals[(n * 4 + k) * channels + c];
    dcentre[c] = float(-s[0] * given.scale[c]);
    dscale[c] = float(s[1] - s[0] * given.centre[c]);
    dbeta[c] = float(s[2] * given.scale[c]);
    dgamma[c] = float(s[3] * given.scale[c]);
  }
}

// y = x * gate, with gate [samples, channels].
template <class T>
void multiply(const Walk& walk, const T* x, const float* gate, T* y) {
  Pool::get().run(walk.samples * walk.chunks, [&](int64_t t) {
    const int64_t n = t / walk.chunks;
    Lanes lanes(walk);
    const float* g = lanes.repeat([&](int64_t c) { return gate[n * walk.channels + c]; });
    walk.lines(n, t % walk.chunks, [&](int64_t at, int length) {
      const T* from = x + at;
      T* to = y + at;
INDEPENDENT_ITERATIONS
      for (int i = 0; i < length; ++i) store(load(from[i]) * g[i], to + i);
    });
  });
}

template <class T>
void multiply_gradient(const Walk& walk, const T* dy, const T* x, const float* gate, T* dx, float* dgate) {
  one_pass(
      walk, 1,
      [&](int64_t n, int64_t j, double* sums) {
        Lanes lanes(walk);
        const float* g = lanes.repeat([&](int64_t c) { return gate[n * walk.channels + c]; });
        float* sum = lanes.zeros();
        walk.lines(n, j, [&](int64_t at, int length) {
          const T *from = x + at, *gradient = dy + at;
          T* to = dx + at;
INDEPENDENT_ITERATIONS
          for (int i = 0; i < length; ++i) {
            const float d = load(gradient[i]);
            sum[i] += d * load(from[i]);
            store(d * g[i], to + i);
          }
        });
        lanes.fold(sum, sums);
      },
      [&](int64_t n, const double* sums) {
        for (int64_t c = 0; c < walk.channels; ++c) dgate[n * walk.channels + c] = float(sums[c]);
      });
}
