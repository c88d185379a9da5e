// Groups of 16 numbers in the vectors of the CPU: one of AVX-512, or two of AVX2. In both: `copy_group`, `cover` and
// `add_products`, which `conv.h` needs; of AVX2 also the tiles and `Pair`, for `conv_small.h`.

#pragma once

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#define G16_GROUP_CONV

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

constexpr int kGroup = 16;  // channels

// Weights of a place of the kernel, and where its first number lies from that of the output at its own place.
struct Place {
  int64_t offset;
  const float* weights;  // [16, 16]
};

#if defined(__AVX512F__)

// `past`: past the cache, for what is too large to be still there when it is read.
inline void store_group(__m512 value, float* to, bool past) {
  if (past)
    _mm512_stream_ps(to, value);
  else
    _mm512_storeu_ps(to, value);
}

inline void copy_group(const float* from, float* to) { _mm512_store_ps(to, _mm512_loadu_ps(from)); }

// Outputs [ROWS, COLUMNS] of one group, from `in`, whose rows of outputs lie `in_row` numbers apart.
template <int ROWS, int COLUMNS>
void tile(const float* in, int64_t in_row, const std::vector<Place>& taps, float* out, int64_t out_row,
          int64_t out_column, bool past) {
  __m512 sums[ROWS][COLUMNS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 14
    for (int c = 0; c < COLUMNS; ++c) sums[r][c] = _mm512_setzero_ps();
  for (const Place& tap : taps) {
    const float* from = in + tap.offset;
    const float* weights = tap.weights;
    for (int i = 0; i < kGroup; ++i, ++from, weights += kGroup) {
      const __m512 w = _mm512_load_ps(weights);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 14
        for (int c = 0; c < COLUMNS; ++c)
          sums[r][c] = _mm512_fmadd_ps(_mm512_set1_ps(from[r * in_row + c * kGroup]), w, sums[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 14
    for (int c = 0; c < COLUMNS; ++c) store_group(sums[r][c], out + r * out_row + c * out_column, past);
}

using Tile = void (*)(const float*, int64_t, const std::vector<Place>&, float*, int64_t, int64_t, bool);

template <int ROWS>
Tile tile_of_columns(int64_t columns) {
  constexpr int few = ROWS < 3 ? ROWS : 1;  // three and four rows have seven columns at most
  static const Tile tiles[] = {tile<ROWS, 1>, tile<ROWS, 2>, tile<ROWS, 3>, tile<ROWS, 4>, tile<ROWS, 5>,
                               tile<ROWS, 6>, tile<ROWS, 7>, tile<few, 8>,  tile<few, 9>,  tile<few, 10>,
                               tile<few, 11>, tile<few, 12>, tile<few, 13>, tile<few, 14>};
  return tiles[columns - 1];
}

inline Tile tile_of(int64_t rows, int64_t columns) {
  return rows == 4   ? tile_of_columns<4>(columns)
         : rows == 3 ? tile_of_columns<3>(columns)
         : rows == 2 ? tile_of_columns<2>(columns)
                     : tile_of_columns<1>(columns);
}

// All outputs [rows, columns] in tiles; the last of a row may overlap the one before it.
inline void cover(int64_t rows, int64_t columns, const float* in, int64_t in_row, const std::vector<Place>& taps,
                  float* out, int64_t out_row, int64_t out_column, bool past) {
  const int64_t parts = (columns + 13) / 14, wide = (columns + parts - 1) / parts, high = wide <= 7 ? 4 : 2;
  for (int64_t row = 0; row < rows; row += high) {
    const Tile run = tile_of(std::min(high, rows - row), wide);
    for (int64_t column = 0; column < columns; column += wide) {
      const int64_t c = std::min(column, columns - wide);
      run(in + row * in_row + c * kGroup, in_row, taps, out + row * out_row + c * out_column, out_row, out_column,
          past);
    }
  }
}

// sums[16, 16] += x [rows, columns, 16] times dy [rows, columns, 16], over rows and columns.
inline void add_products(const float* x, int64_t x_row, const float* dy, int64_t dy_row, int64_t rows, int64_t columns,
                         float* sums) {
  __m512 own[kGroup];
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i) own[i] = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows; ++r, x += x_row, dy += dy_row) {
    const float *from = x, *gradient = dy;
    for (int64_t c = 0; c < columns; ++c, from += kGroup, gradient += kGroup) {
      const __m512 d = _mm512_load_ps(gradient);
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) own[i] = _mm512_fmadd_ps(_mm512_set1_ps(from[i]), d, own[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i)
    _mm512_store_ps(sums + i * kGroup, _mm512_add_ps(_mm512_load_ps(sums + i * kGroup), own[i]));
}

#else  // AVX2

inline void store_group(const __m256* values, float* to, bool past) {
  if (past) {
    _mm256_stream_ps(to, values[0]);
    _mm256_stream_ps(to + 8, values[1]);
  } else {
    _mm256_storeu_ps(to, values[0]);
    _mm256_storeu_ps(to + 8, values[1]);
  }
}

inline void copy_group(const float* from, float* to) {
  _mm256_store_ps(to, _mm256_loadu_ps(from));
  _mm256_store_ps(to + 8, _mm256_loadu_ps(from + 8));
}

constexpr int kTile = 6;  // outputs, whose 12 vectors stay in registers

// COUNT outputs of one group, wherever they and their inputs lie.
template <int COUNT>
void tile(const float* const* in, const std::vector<Place>& taps, float* const* out, bool past) {
  __m256 sums[COUNT][2];
#pragma GCC unroll 6
  for (int j = 0; j < COUNT; ++j) sums[j][0] = sums[j][1] = _mm256_setzero_ps();
  for (const Place& tap : taps) {
    const float* from[COUNT];
#pragma GCC unroll 6
    for (int j = 0; j < COUNT; ++j) from[j] = in[j] + tap.offset;
    const float* weights = tap.weights;
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; ++i, weights += kGroup) {
      const __m256 low = _mm256_load_ps(weights), high = _mm256_load_ps(weights + 8);
#pragma GCC unroll 6
      for (int j = 0; j < COUNT; ++j) {
        const __m256 number = _mm256_broadcast_ss(from[j] + i);
        sums[j][0] = _mm256_fmadd_ps(number, low, sums[j][0]);
        sums[j][1] = _mm256_fmadd_ps(number, high, sums[j][1]);
      }
    }
  }
#pragma GCC unroll 6
  for (int j = 0; j < COUNT; ++j) store_group(sums[j], out[j], past);
}

using Tile = void (*)(const float* const*, const std::vector<Place>&, float* const*, bool);

// How many outputs a tile takes where `count` are split evenly; the last tile may overlap the one before.
inline int64_t tile_size(int64_t count) {
  const int64_t parts = (count + kTile - 1) / kTile;
  return (count + parts - 1) / parts;
}

inline Tile tile_of(int64_t count) {
  static const Tile tiles[] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  return tiles[count - 1];
}

// All outputs [rows, columns] in tiles.
inline void cover(int64_t rows, int64_t columns, const float* in, int64_t in_row, const std::vector<Place>& taps,
                  float* out, int64_t out_row, int64_t out_column, bool past) {
  const int64_t count = rows * columns, together = tile_size(count);
  const Tile run = tile_of(together);
  for (int64_t first = 0; first < count; first += together) {
    const float* from[kTile];
    float* to[kTile];
    const int64_t begin = std::min(first, count - together);
    for (int64_t j = 0, r = begin / columns, c = begin % columns; j < together; ++j) {
      from[j] = in + r * in_row + c * kGroup;
      to[j] = out + r * out_row + c * out_column;
      if (++c == columns) ++r, c = 0;
    }
    run(from, taps, to, past);
  }
}

// Where a number of the input and a vector of the gradient lie whose products are added up.
struct Pair {
  int32_t x, dy;
};

// Of sums[16, 16] the rows FIRST to FIRST + COUNT += x times dy, over `pairs` of `samples` images, which lie `x_image`
// and `dy_image` numbers apart.
template <int FIRST, int COUNT>
void add_rows(const float* x, int64_t x_image, const float* dy, int64_t dy_image, int64_t samples, const Pair* pairs,
              const Pair* end, float* sums) {
  __m256 own[COUNT][2];
#pragma GCC unroll 6
  for (int i = 0; i < COUNT; ++i) own[i][0] = own[i][1] = _mm256_setzero_ps();
  for (int64_t n = 0; n < samples; ++n, x += x_image, dy += dy_image)
    for (const Pair* pair = pairs; pair != end; ++pair) {
      const float *from = x + pair->x + FIRST, *gradient = dy + pair->dy;
      const __m256 low = _mm256_load_ps(gradient), high = _mm256_load_ps(gradient + 8);
#pragma GCC unroll 6
      for (int i = 0; i < COUNT; ++i) {
        const __m256 number = _mm256_broadcast_ss(from + i);
        own[i][0] = _mm256_fmadd_ps(number, low, own[i][0]);
        own[i][1] = _mm256_fmadd_ps(number, high, own[i][1]);
      }
    }
  sums += FIRST * kGroup;
#pragma GCC unroll 6
  for (int i = 0; i < COUNT; ++i, sums += kGroup) {
    _mm256_store_ps(sums, _mm256_add_ps(_mm256_load_ps(sums), own[i][0]));
    _mm256_store_ps(sums + 8, _mm256_add_ps(_mm256_load_ps(sums + 8), own[i][1]));
  }
}

inline void add_products(const float* x, int64_t x_image, const float* dy, int64_t dy_image, int64_t samples,
                         const std::vector<Pair>& pairs, float* sums) {
  const Pair *begin = pairs.data(), *end = begin + pairs.size();
  add_rows<0, 6>(x, x_image, dy, dy_image, samples, begin, end, sums);
  add_rows<6, 5>(x, x_image, dy, dy_image, samples, begin, end, sums);
  add_rows<11, 5>(x, x_image, dy, dy_image, samples, begin, end, sums);
}

// sums[16, 16] += x [rows, columns, 16] times dy [rows, columns, 16], over rows and columns.
inline void add_products(const float* x, int64_t x_row, const float* dy, int64_t dy_row, int64_t rows, int64_t columns,
                         float* sums) {
  static thread_local std::vector<Pair> pairs;  // of a row, which is taken as an image is
  pairs.clear();
  for (int32_t c = 0; c < columns; ++c) pairs.push_back({c * kGroup, c * kGroup});
  add_products(x, x_row, dy, dy_row, rows, pairs, sums);
}

#endif  // AVX2

#endif  // G16_GROUP_CONV
