// A step of the optimizer, or of the average of the weights, over all variables of a network in one pass, with the check
// for finite gradients. The formulas are those of the optimizers in Python, to rounding.

#pragma once

#include "kernels.h"

// One variable: what is read, and where the new values go. A rule has two slots at most.
struct Trained {
  int64_t size;
  float rate, decay;  // the learning rate's factor, and the weight decay
  const float *gradient, *value, *slots[2];
  float *new_value, *new_slots[2];
};

// A rule is made from its numbers, those of Python's `Optimizer.numbers`. `step` takes a gradient into a value `w` and
// its slots `a` and `b`.

struct RMSProp {
  enum { slots = 2, numbers = 4 };
  const float rate, rest, friction, epsilon, decay;
  RMSProp(const float* n, const Trained& v)
      : rate(n[0] * v.rate), rest(1.f - n[1]), friction(n[2]), epsilon(n[3]), decay(v.decay) {}
  void step(float gradient, float& w, float& a, float& b) const {
    const float g = gradient + decay * w;
    a += (g * g - a) * rest;
    b = b * friction + g * rate / std::sqrt(a + epsilon);
    w -= b;
  }
};

struct SGD {
  enum { slots = 1, numbers = 3 };
  const float rate, friction, ahead, now, decay;  // with Nesterov's momentum the step is taken ahead
  SGD(const float* n, const Trained& v)
      : rate(n[0] * v.rate), friction(n[1]), ahead(n[2] ? n[1] : 1.f), now(n[2] ? rate : 0.f), decay(v.decay) {}
  void step(float gradient, float& w, float& a, float&) const {
    const float g = gradient + decay * w;
    a = friction * a - rate * g;
    w += ahead * a - now * g;
  }
};

struct AdamW {
  enum { slots = 2, numbers = 8 };
  const float rate, keep, take, keep_square, take_square, epsilon, scale, scale_square, decay;
  AdamW(const float* n, const Trained& v)
      : rate(n[0] * v.rate), keep(n[1]), take(n[2]), keep_square(n[3]), take_square(n[4]), epsilon(n[5]),
        scale(1.f / n[6]), scale_square(1.f / n[7]), decay(v.decay) {}
  void step(float g, float& w, float& a, float& b) const {
    a = keep * a + take * g;
    b = keep_square * b + take_square * (g * g);
    w -= rate * (a * scale / (std::sqrt(b * scale_square) + epsilon) + decay * w);
  }
};

struct Lion {
  enum { slots = 1, numbers = 5 };
  const float rate, old, now, keep, take, decay;
  Lion(const float* n, const Trained& v)
      : rate(n[0] * v.rate), old(n[1]), now(n[2]), keep(n[3]), take(n[4]), decay(v.decay) {}
  void step(float g, float& w, float& a, float&) const {
    const float m = old * a + now * g;
    const bool not_a_number = (as_bits(m) & 0x7fffffff) > 0x7f800000;  // which has no sign, and must be seen
    w -= rate * ((not_a_number ? m : float((m > 0.f) - (m < 0.f))) + decay * w);
    a = keep * a + take * g;
  }
};

// The gradient is the weight that is taken into its average.
struct Average {
  enum { slots = 0, numbers = 1 };
  const float share;
  Average(const float* n, const Trained&) : share(n[0]) {}
  void step(float weight, float& w, float&, float&) const { w += share * (weight - w); }
};

// Whether the gradients are finite: in integers, for the compiler takes floats as finite.
template <class Rule>
bool update_part(const float* numbers, const Trained& v, int64_t begin, int64_t end) {
  const Rule rule(numbers, v);
  const float *gradient = v.gradient, *value = v.value, *first = v.slots[0], *second = v.slots[1];
  float *new_value = v.new_value, *new_first = v.new_slots[0], *new_second = v.new_slots[1];
  uint32_t largest = 0;
INDEPENDENT_ITERATIONS
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t magnitude = as_bits(gradient[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
    float w = value[i], a = Rule::slots > 0 ? first[i] : 0.f, b = Rule::slots > 1 ? second[i] : 0.f;
    rule.step(gradient[i], w, a, b);
    new_value[i] = w;
    if (Rule::slots > 0) new_first[i] = a;
    if (Rule::slots > 1) new_second[i] = b;
  }
  return largest < 0x7f800000;
}

typedef bool (*UpdatePart)(const float*, const Trained&, int64_t, int64_t);

struct Update {
  int slots, numbers;
  UpdatePart part;
};

template <class Rule>
Update update_of() {
  return {Rule::slots, Rule::numbers, update_part<Rule>};
}

inline void update_all(const Update& update, const float* numbers, const std::vector<Trained>& variables,
                       bool* finite) {
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
    good[t] = update.part(numbers, variables[parts[t].variable], parts[t].begin, parts[t].end);
  });
  std::fill_n(finite, variables.size(), true);
  for (size_t t = 0; t < parts.size(); ++t)
    if (!good[t]) finite[parts[t].variable] = false;
}
