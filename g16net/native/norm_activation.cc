// The norm-activation and the gate of squeeze-and-excite as TensorFlow operations for the CPU, forward and backward.
//
// They belong to layers whose time is that of their passes over memory: a graph of TensorFlow's operations reads and
// writes a large tensor some ten times, these read it once from memory and once more from the cache. One sample is one
// task; where samples are few, they are cut into chunks of pixels. The order of every sum depends on the shape of one
// sample alone, so neither threads nor batch mates change a bit of the result.
//
// Loops run over lines: as many pixels as make a few hundred numbers, next to each other in memory, with the numbers a
// channel repeated to the same length. So all channel counts vectorise alike, by the compiler alone. Sums are float32
// within a chunk (some dozens of terms a lane) and float64 beyond.
//
// Only TensorFlow's C API is used, which is the same binary interface in every version.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

namespace {

// ---------------------------------------------------------------------------------------------------------- threads

// Denormal numbers are 0 here as they are in TensorFlow's own threads, whichever thread computes.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
#endif
};

// Own threads, for the C API does not hand out TensorFlow's. A second operation that runs at the same time finds the
// pool taken and computes alone, so there are never more busy threads than cores.
class Pool {
 public:
  static Pool& get() {
    static Pool* pool = new Pool;  // lives as long as its threads: for ever
    return *pool;
  }

  void resize(int threads) {
    std::lock_guard<std::mutex> owner(owner_);
    for (; size_ < threads; ++size_) std::thread([this] { wait_for_work(); }).detach();
  }

  int size() const { return size_; }

  void run(int64_t count, const std::function<void(int64_t)>& body) {
    FlushDenormals flush;
    if (count < 2 || size_ < 2 || !owner_.try_lock()) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      count_ = count;
      next_ = 0;
      open_ = true;
      ++job_;
    }
    wake_.notify_all();
    work();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      open_ = false;  // who wakes up now is too late to join
      done_.wait(lock, [this] { return active_ == 0; });
    }
    owner_.unlock();
  }

 private:
  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*body_)(i);
  }

  void wait_for_work() {
    FlushDenormals flush;
    std::unique_lock<std::mutex> lock(mutex_);
    for (uint64_t seen = 0;;) {
      wake_.wait(lock, [&] { return open_ && job_ != seen; });
      seen = job_;
      ++active_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0 && !open_) done_.notify_one();
    }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  uint64_t job_ = 0;
  int active_ = 0;
  bool open_ = false;
  std::atomic<int> size_{1};
};

// ---------------------------------------------------------------------------------------------------------- numbers

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
  static float value(float u) { return u > 0.f ? u : 0.f; }
  static float value_and_slope(float u, float* slope) {
    *slope = u > 0.f ? 1.f : 0.f;
    return u > 0.f ? u : 0.f;
  }
};

struct Linear {
  static float value(float u) { return u; }
  static float value_and_slope(float u, float* slope) {
    *slope = 1.f;
    return u;
  }
};

// ------------------------------------------------------------------------------------------------------------ shape

// How a tensor [samples, pixels, channels] is walked.
struct Walk {
  Walk(int64_t samples, int64_t pixels, int64_t channels) : samples(samples), pixels(pixels), channels(channels) {
    int64_t unit = 1;  // pixels whose channels fill whole vectors
    while (unit < 16 && unit * channels % 16) unit *= 2;
    if (unit * channels > 4096) unit = 1;
    line = std::max<int64_t>(1, 512 / (unit * channels)) * unit;
    const int64_t lines = (pixels + line - 1) / line, wanted = std::max<int64_t>(1, pixels * channels / 32768);
    chunk = (lines + wanted - 1) / wanted * line;
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

// -------------------------------------------------------------------------------------------------- norm-activation

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
  // Squares of differences from the first pixel, which is near enough to the mean of its channel to cancel little.
  const auto statistics = [&](int64_t n, int64_t j, double* sums) {
    if (!config.groups) return;
    const T* first = x + walk.begin(n, 0);
    Lanes lanes(walk);
    const float* shift = lanes.repeat([&](int64_t c) { return load(first[c]); });
    float *sum = lanes.zeros(), *squares = lanes.zeros();
    walk.lines(n, j, [&](int64_t at, int length) {
      const T* line = x + at;
#pragma GCC ivdep
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
      inv_stds[c] = float(1. / __builtin_sqrt(group_squares[g] / width + double(config.epsilon)));
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
#pragma GCC ivdep
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
#pragma GCC ivdep
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
#pragma GCC ivdep
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

// ------------------------------------------------------------------------------------------------------------- gate

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
#pragma GCC ivdep
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
#pragma GCC ivdep
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

// ------------------------------------------------------------------------------------------------------- TensorFlow

// One call of a kernel: its inputs and outputs, freed at the end.
class Call {
 public:
  explicit Call(TF_OpKernelContext* context) : context_(context), status_(TF_NewStatus()) {}
  ~Call() {
    for (TF_Tensor* tensor : tensors_) TF_DeleteTensor(tensor);
    if (TF_GetCode(status_) != TF_OK) TF_OpKernelContext_Failure(context_, status_);
    TF_DeleteStatus(status_);
  }

  bool ok() const { return TF_GetCode(status_) == TF_OK; }
  void fail(const std::string& message) { TF_SetStatus(status_, TF_INVALID_ARGUMENT, message.c_str()); }

  TF_Tensor* input(int index) {
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context_, index, &tensor, status_);
    if (tensor) tensors_.push_back(tensor);
    return tensor;
  }

  template <class T>
  const T* input(int index, const std::vector<int64_t>& shape) {
    TF_Tensor* tensor = input(index);
    if (!tensor) return nullptr;
    if (dims(tensor) != shape) fail("input " + std::to_string(index) + " has a shape that does not fit that of x");
    return static_cast<const T*>(TF_TensorData(tensor));
  }

  // In the memory of the given input where nobody else needs that.
  template <class T>
  T* output(int index, std::vector<int64_t> shape, int instead_of = -1) {
    TF_Tensor* tensor = TF_ForwardInputOrAllocateOutput(context_, &instead_of, instead_of >= 0, index, shape.data(),
                                                        int(shape.size()), nullptr, status_);
    if (!ok() || !tensor) return nullptr;
    tensors_.push_back(tensor);
    return static_cast<T*>(TF_TensorData(tensor));
  }

  static std::vector<int64_t> dims(TF_Tensor* tensor) {
    std::vector<int64_t> shape(TF_NumDims(tensor));
    for (size_t i = 0; i < shape.size(); ++i) shape[i] = TF_Dim(tensor, int(i));
    return shape;
  }

  // The shape of x, which must be [batch, height, width, channels].
  std::vector<int64_t> image(int index) {
    TF_Tensor* tensor = input(index);
    if (!tensor) return {};
    if (TF_NumDims(tensor) != 4) fail("x must be [batch, height, width, channels]");
    return dims(tensor);
  }

 private:
  TF_OpKernelContext* context_;
  TF_Status* status_;
  std::vector<TF_Tensor*> tensors_;
};

Walk walk_of(const std::vector<int64_t>& shape) { return Walk(shape[0], shape[1] * shape[2], shape[3]); }

void* create(TF_OpKernelConstruction* construction) {
  Config* config = new Config;
  TF_Status* status = TF_NewStatus();
  TF_Bool strided = 0;
  int32_t size = 0, total = 0;
  TF_OpKernelConstruction_GetAttrInt32(construction, "groups", &config->groups, status);
  TF_OpKernelConstruction_GetAttrBool(construction, "strided", &strided, status);
  TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &config->epsilon, status);
  TF_OpKernelConstruction_GetAttrSize(construction, "activation", &size, &total, status);
  std::vector<char> name(total + 1);
  TF_OpKernelConstruction_GetAttrString(construction, "activation", name.data(), total, status);
  config->strided = strided;
  config->activation.assign(name.data(), total);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return config;
}

void destroy(void* config) { delete static_cast<Config*>(config); }

template <class T>
void compute(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  const std::vector<int64_t> shape = call.image(0);
  if (!call.ok()) return;
  const Walk walk = walk_of(shape);
  if (config.groups < 0 || (config.groups && walk.channels % config.groups)) {
    call.fail("groups must divide the channels");
    return;
  }
  const std::vector<int64_t> per_channel{walk.channels}, per_sample{walk.samples, walk.channels};
  T* y = call.output<T>(0, shape, 0);
  const T* x = call.input<T>(0, shape);
  Channels given;
  given.gamma = call.input<float>(1, per_channel);
  given.beta = call.input<float>(2, per_channel);
  given.centre = call.input<float>(3, per_channel);
  given.scale = call.input<float>(4, per_channel);
  float* mean = call.output<float>(1, per_sample);
  float* inv_std = call.output<float>(2, per_sample);
  float* pooled = call.output<float>(3, per_sample);
  if (!call.ok()) return;
  const auto run = config.activation == "swish"  ? forward<T, Swish>
                   : config.activation == "relu" ? forward<T, Relu>
                                                 : forward<T, Linear>;
  run(walk, config, x, given, y, mean, inv_std, pooled);
}

template <class T>
void compute_gradient(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  const std::vector<int64_t> shape = call.image(2);
  if (!call.ok()) return;
  const Walk walk = walk_of(shape);
  const std::vector<int64_t> per_channel{walk.channels}, per_sample{walk.samples, walk.channels};
  T* dx = call.output<T>(0, shape, 0);
  const T* dy = call.input<T>(0, shape);
  const float* dpooled = call.input<float>(1, per_sample);
  const T* x = call.input<T>(2, shape);
  Channels given;
  given.gamma = call.input<float>(3, per_channel);
  given.beta = call.input<float>(4, per_channel);
  given.centre = call.input<float>(5, per_channel);
  given.scale = call.input<float>(6, per_channel);
  const float* mean = call.input<float>(7, per_sample);
  const float* inv_std = call.input<float>(8, per_sample);
  float* dgamma = call.output<float>(1, per_channel);
  float* dbeta = call.output<float>(2, per_channel);
  float* dcentre = call.output<float>(3, per_channel);
  float* dscale = call.output<float>(4, per_channel);
  if (!call.ok()) return;
  const auto run = config.activation == "swish"  ? backward<T, Swish>
                   : config.activation == "relu" ? backward<T, Relu>
                                                 : backward<T, Linear>;
  run(walk, config, dy, dpooled, x, given, mean, inv_std, dx, dgamma, dbeta, dcentre, dscale);
}

template <class T>
void compute_multiply(void*, TF_OpKernelContext* context) {
  Call call(context);
  const std::vector<int64_t> shape = call.image(0);
  if (!call.ok()) return;
  T* y = call.output<T>(0, shape, 0);
  const T* x = call.input<T>(0, shape);
  const float* gate = call.input<float>(1, {shape[0], shape[3]});
  if (call.ok()) multiply(walk_of(shape), x, gate, y);
}

template <class T>
void compute_multiply_gradient(void*, TF_OpKernelContext* context) {
  Call call(context);
  const std::vector<int64_t> shape = call.image(1);
  if (!call.ok()) return;
  T* dx = call.output<T>(0, shape, 0);
  const T* dy = call.input<T>(0, shape);
  const T* x = call.input<T>(1, shape);
  const float* gate = call.input<float>(2, {shape[0], shape[3]});
  float* dgate = call.output<float>(1, {shape[0], shape[3]});
  if (call.ok()) multiply_gradient(walk_of(shape), dy, x, gate, dx, dgate);
}

// Sets the output's shape to that of an input.
void same_shape(TF_ShapeInferenceContext* context, int output, int input, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, input, shape, status);
  TF_ShapeInferenceContextSetOutput(context, output, shape, status);
  TF_DeleteShapeHandle(shape);
}

void forward_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle *shape = TF_NewShapeHandle(), *batch = TF_NewShapeHandle(), *channels = TF_NewShapeHandle();
  TF_ShapeHandle* per_sample = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  TF_ShapeInferenceContextWithRank(context, shape, 4, shape, status);
  if (TF_GetCode(status) == TF_OK) {
    TF_ShapeInferenceContextSubshape(context, shape, 0, 1, batch, status);
    TF_ShapeInferenceContextSubshape(context, shape, 3, 4, channels, status);
    TF_ShapeInferenceContextConcatenateShapes(context, batch, channels, per_sample, status);
    TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
    for (int output = 1; output < 4; ++output)
      TF_ShapeInferenceContextSetOutput(context, output, per_sample, status);
  }
  for (TF_ShapeHandle* handle : {shape, batch, channels, per_sample}) TF_DeleteShapeHandle(handle);
}

void gradient_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  same_shape(context, 0, 2, status);
  for (int output = 1; output < 5; ++output) same_shape(context, output, output + 2, status);
}

void multiply_shapes(TF_ShapeInferenceContext* context, TF_Status* status) { same_shape(context, 0, 0, status); }

void multiply_gradient_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  same_shape(context, 0, 1, status);
  same_shape(context, 1, 2, status);
}

using Compute = void (*)(void*, TF_OpKernelContext*);

void define(const char* name, const std::vector<const char*>& inputs, const std::vector<const char*>& outputs,
            bool configured, void (*shapes)(TF_ShapeInferenceContext*, TF_Status*), Compute float32,
            Compute bfloat16) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* definition = TF_NewOpDefinitionBuilder(name);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(definition, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(definition, output);
  TF_OpDefinitionBuilderAddAttr(definition, "T: {float, bfloat16}");
  if (configured)
    for (const char* attribute : {"groups: int", "strided: bool", "epsilon: float", "activation: string"})
      TF_OpDefinitionBuilderAddAttr(definition, attribute);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, shapes);
  TF_RegisterOpDefinition(definition, status);
  for (const auto& kernel : {std::make_pair(TF_FLOAT, float32), std::make_pair(TF_BFLOAT16, bfloat16)}) {
    TF_KernelBuilder* builder = TF_NewKernelBuilder(name, "CPU", configured ? create : nullptr, kernel.second,
                                                    configured ? destroy : nullptr);
    TF_KernelBuilder_TypeConstraint(builder, "T", kernel.first, status);
    TF_RegisterKernelBuilder(name, builder, status);
  }
  TF_DeleteStatus(status);
}

__attribute__((constructor)) void define_all() {
  define("G16NormActivation", {"x: T", "gamma: float", "beta: float", "centre: float", "scale: float"},
         {"y: T", "mean: float", "inv_std: float", "pooled: float"}, true, forward_shapes, compute<float>,
         compute<BFloat16>);
  define("G16NormActivationGrad",
         {"dy: T", "dpooled: float", "x: T", "gamma: float", "beta: float", "centre: float", "scale: float",
          "mean: float", "inv_std: float"},
         {"dx: T", "dgamma: float", "dbeta: float", "dcentre: float", "dscale: float"}, true, gradient_shapes,
         compute_gradient<float>, compute_gradient<BFloat16>);
  define("G16Gate", {"x: T", "gate: float"}, {"y: T"}, false, multiply_shapes, compute_multiply<float>,
         compute_multiply<BFloat16>);
  define("G16GateGrad", {"dy: T", "x: T", "gate: float"}, {"dx: T", "dgate: float"}, false,
         multiply_gradient_shapes, compute_multiply_gradient<float>, compute_multiply_gradient<BFloat16>);
}

}  // namespace

// Called by g16net.native once, before the first use.
extern "C" void g16_set_threads(int threads) { Pool::get().resize(threads); }
