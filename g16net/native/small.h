// Shift and mirroring of images of a few pixels, drawn as TensorFlow's stateless operations draw: the same seeds give
// the same bytes as `data.transforms.small_image` gives one image at a time.

#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

using Four = std::array<uint32_t, 4>;

// Philox 4x32 of ten rounds (Salmon et al. 2011), whose first block is all that these draws need.
inline Four philox(Four counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * counter[0], second = uint64_t(0xCD9E8D57u) * counter[2];
    counter = {uint32_t(second >> 32) ^ counter[1] ^ key0, uint32_t(second), uint32_t(first >> 32) ^ counter[3] ^ key1,
               uint32_t(first)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// What tf.random.stateless_uniform draws from, for a seed int32 [2].
inline Four stateless(int32_t seed0, int32_t seed1) {
  const uint64_t a = uint64_t(int64_t(seed0)), b = uint64_t(int64_t(seed1));
  const Four mix = philox({uint32_t(a), uint32_t(a >> 32), uint32_t(b), uint32_t(b >> 32)}, 0x3ec8f720u, 0x02461e29u);
  return philox({0, 0, mix[2], mix[3]}, mix[0], mix[1]);
}

// Where the input's pixel for `place` lies along a side of `size`, -1: outside.
inline int64_t inside(int64_t place, int64_t size, bool reflect) {
  if (reflect) place = (size - 1) - std::llabs((size - 1) - std::llabs(place));
  return place >= 0 && place < size ? place : -1;
}

// One image [height, width, 3], shifted by up to `pad` pixels each way, mirrored in half of the cases where `flip`.
// `flip_stream` is what `transforms.derive` makes of the seed for that.
inline void small_image(const uint8_t* from, int64_t height, int64_t width, const int32_t* seed, int64_t pad, bool flip,
                        bool reflect, int32_t flip_stream, std::vector<int64_t>& columns, uint8_t* to) {
  int64_t down = 0, across = 0;
  if (pad) {
    const Four drawn = stateless(seed[0], seed[1]);
    down = int64_t(drawn[0] % uint32_t(2 * pad + 1)) - pad;
    across = int64_t(drawn[1] % uint32_t(2 * pad + 1)) - pad;
  }
  const bool mirrored = flip && stateless(seed[0] ^ flip_stream, seed[1])[0] % 2 > 0;
  for (int64_t x = 0; x < width; ++x)
    columns[mirrored ? width - 1 - x : x] = inside(x + across, width, reflect);
  for (int64_t y = 0; y < height; ++y, to += 3 * width) {
    const int64_t row = inside(y + down, height, reflect);
    if (row < 0) {
      std::memset(to, 0, 3 * width);
      continue;
    }
    const uint8_t* pixels = from + row * width * 3;
    for (int64_t x = 0; x < width; ++x) {
      if (columns[x] < 0) {
        std::memset(to + 3 * x, 0, 3);
      } else {
        std::memcpy(to + 3 * x, pixels + 3 * columns[x], 3);
      }
    }
  }
}
