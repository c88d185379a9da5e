// Shifts, boxes and mirroring of images of a few pixels, drawn as TensorFlow's stateless operations draw: the same seeds
// give the same bytes as `data.transforms.small_image` and `train_image` give one image at a time. Part of `exact.h`.

#pragma once

#include "resize.h"

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

// What TensorFlow's stateless operations draw from, for a seed int32 [2]: blocks of four numbers.
class Stateless {
 public:
  Stateless(int32_t seed0, int32_t seed1) {
    const uint64_t a = uint64_t(int64_t(seed0)), b = uint64_t(int64_t(seed1));
    mix_ = philox({uint32_t(a), uint32_t(a >> 32), uint32_t(b), uint32_t(b >> 32)}, 0x3ec8f720u, 0x02461e29u);
  }

  Four block(uint32_t index) const { return philox({index, 0, mix_[2], mix_[3]}, mix_[0], mix_[1]); }

  uint32_t next() {
    if (used_ % 4 == 0) drawn_ = block(used_ / 4);
    return drawn_[used_++ % 4];
  }

  // In [0, 1), in steps of 2^-23.
  float uniform() { return float(next() & 0x7fffffu) / 8388608.f; }

  // Below `n`, all equally probable; of a power of two the lowest bits, otherwise the smallest numbers are drawn again.
  uint32_t below(uint32_t n) {
    if ((n & (n - 1)) == 0) return next() & (n - 1);
    const uint32_t rest = (~uint32_t(0) % n) + 1;
    uint32_t drawn;
    do drawn = next();
    while (drawn < rest);
    return drawn % n;
  }

 private:
  Four mix_, drawn_;
  uint32_t used_ = 0;
};

inline bool coin(const int32_t* seed, int32_t stream) { return Stateless(seed[0] ^ stream, seed[1]).block(0)[0] % 2; }

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
    const Four drawn = Stateless(seed[0], seed[1]).block(0);
    down = int64_t(drawn[0] % uint32_t(2 * pad + 1)) - pad;
    across = int64_t(drawn[1] % uint32_t(2 * pad + 1)) - pad;
  }
  const bool mirrored = flip && coin(seed, flip_stream);
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

// How training boxes are drawn, see `data.transforms.random_box`.
struct Boxes {
  int64_t size, attempts, flip_stream;
  float area_min, area_max, aspect_min, aspect_max, covered;
  bool flip, half_pixel_centers;
};

struct Box {
  int64_t y, x, height, width;
};

// A box of so much width for each pixel of height; false where its share of the image leaves the range, which TensorFlow
// tries to mend by one pixel of height.
inline bool draw_box(int height, int width, float aspect, const Boxes& boxes, Stateless& random, Box* box) {
  const auto across = [=](int down) { return int(std::lrint(down * aspect)); };
  const float least = boxes.area_min * width * height, most = boxes.area_max * width * height;
  int down = int(std::lrint(std::sqrt(least / aspect))), highest = int(std::lrint(std::sqrt(most / aspect)));
  if (across(highest) > width) {
    highest = int((width + 0.5 - double(0.0000001f)) / aspect);
    if (across(highest) > width) --highest;
  }
  highest = std::min(highest, height);
  down = std::min(down, highest);
  if (down < highest) down += int(random.below(uint32_t(highest - down + 1)));
  if (float(down * across(down)) < least) ++down;
  if (float(down * across(down)) > most) --down;
  const float area = float(down * across(down));
  if (area < least || area > most || across(down) > width || down > height || across(down) <= 0 || down <= 0)
    return false;
  const int y = down < height ? int(random.below(uint32_t(height - down))) : 0;
  const int x = across(down) < width ? int(random.below(uint32_t(width - across(down)))) : 0;
  *box = {y, x, down, across(down)};
  return area / float(width * height) >= boxes.covered;
}

inline Box draw_box(int64_t height, int64_t width, const Boxes& boxes, const int32_t* seed) {
  Stateless random(seed[0], seed[1]);
  Box box;
  for (int64_t attempt = 0; attempt < boxes.attempts; ++attempt) {
    const float aspect = random.uniform() * (boxes.aspect_max - boxes.aspect_min) + boxes.aspect_min;
    if (draw_box(int(height), int(width), aspect, boxes, random, &box)) return box;
  }
  return {0, 0, height, width};
}

// A box of one image [height, width, 3], resized to `boxes.size` each way, mirrored in half of the cases where asked
// for. `cut`: memory for it.
inline void small_box(const uint8_t* from, int64_t height, int64_t width, const int32_t* seed, const Boxes& boxes,
                      std::vector<uint8_t>& cut, uint8_t* to) {
  const Box box = draw_box(height, width, boxes, seed);
  cut.resize(box.height * box.width * 3);
  for (int64_t y = 0; y < box.height; ++y)
    std::memcpy(&cut[y * box.width * 3], from + ((box.y + y) * width + box.x) * 3, box.width * 3);
  resize(cut.data(), box.height, box.width, 3, boxes.size, boxes.size,
         boxes.flip && coin(seed, int32_t(boxes.flip_stream)), boxes.half_pixel_centers, to);
}
