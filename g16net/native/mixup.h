// Mixup of uint8 images, byte for byte what `data.mixing.mix` gives with TensorFlow's operations. Part of `exact.h`.

#pragma once

// to = image + share * (partner - image), halves rounded to even.
inline void blend(const uint8_t* __restrict image, const uint8_t* __restrict partner, float share, int64_t size,
                  uint8_t* __restrict to) {
  for (int64_t i = 0; i < size; ++i) {
    const float own = image[i];
    to[i] = uint8_t(int32_t(std::rint(own + share * (float(partner[i]) - own))));
  }
}

// Each image with the one before it, of which it takes the share `1 - kept`.
inline void mixup(const uint8_t* images, const float* kept, int64_t batch, int64_t size, uint8_t* to) {
  for (int64_t i = 0; i < batch; ++i) {
    const uint8_t* image = images + i * size;
    const float share = 1.f - kept[i];
    if (share * 255.f < 0.5f)  // no byte changes
      std::memcpy(to + i * size, image, size);
    else
      blend(image, images + (i ? i - 1 : batch - 1) * size, share, size, to + i * size);
  }
}
