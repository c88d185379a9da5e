// TensorFlow 1's RMSProp with L2 and the check for finite gradients, over all variables of a network in one pass.

#pragma once

#include "kernels.h"

struct Update {
  float learning_rate, rho, momentum, epsilon;
};

// One variable: what is read, and where the new values go.
struct Trained {
  int64_t size;
  float decay;
  const float *gradient, *value, *rms, *momentum;
  float *new_value, *new_rms, *new_momentum;
};

// Whether the numbers are finite: in integers, for the compiler takes floats as finite.
inline bool update_part(const Update& update, const Trained& v, int64_t begin, int64_t end) {
  const float *gradient = v.gradient, *value = v.value, *rms = v.rms, *momentum = v.momentum;
  float *new_value = v.new_value, *new_rms = v.new_rms, *new_momentum = v.new_momentum;
  const float decay = v.decay, rest = 1.f - update.rho, rate = update.learning_rate;
  const float friction = update.momentum, epsilon = update.epsilon;
  uint32_t largest = 0;
INDEPENDENT_ITERATIONS
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t magnitude = as_bits(gradient[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
    const float g = gradient[i] + decay * value[i];
    const float r = rms[i] + (g * g - rms[i]) * rest;
    const float m = momentum[i] * friction + g * rate / std::sqrt(r + epsilon);
    new_rms[i] = r;
    new_momentum[i] = m;
    new_value[i] = value[i] - m;
  }
  return largest < 0x7f800000;
}

inline void update_all(const Update& update, const std::vector<Trained>& variables, bool* finite) {
  struct Part {
    size_t variable;
    int64_t begin, end;
  };
  const int64_t length = 1 << 15;
  std::vector<Part> parts;
  for (size_t i = 0; i < variables.size(); ++i)
    for (int64_t begin = 0; begin < variables[i].size; begin += length)
      parts.push_back({i, begin, std::min(begin + length, variables[i].size)});
  std::vector<char> good(parts.size());
  Pool::get().run(int64_t(parts.size()), [&](int64_t t) {
    good[t] = update_part(update, variables[parts[t].variable], parts[t].begin, parts[t].end);
  });
  std::fill_n(finite, variables.size(), true);
  for (size_t t = 0; t < parts.size(); ++t)
    if (!good[t]) finite[parts[t].variable] = false;
}
