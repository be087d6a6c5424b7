// Vectors of float and the two kinds of number that tensors hold: float32 and bfloat16.
//
// A *unit* is 32 bits of an operand along the summed dimension of a product: one float32,
// or two neighbouring bfloat16 that one instruction multiplies and adds as a pair. All
// products below work on units, and so are written once.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 6, VECTORS = 4;  // lanes; a tile of a product, in registers
#elif defined(__AVX2__)
constexpr int W = 8, ROWS = 6, VECTORS = 2;
#else
constexpr int W = 4, ROWS = 6, VECTORS = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef int64_t idx;

template <class V, class T>
inline V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
inline vf splat(float x) { return x - vf{}; }
inline float sum(vf v) {
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
}
inline float largest(vf v) {
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
  return m;
}
inline vf maximum(vf a, vf b) { return a > b ? a : b; }

// e^x to a few units in the last place: x = n ln 2 + r, a polynomial in r, n into the exponent.
inline vf exponential(vf given) {
  vf x = given < -87.0f ? splat(-87.0f) : given;
  x = x > 88.0f ? splat(88.0f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  vf shifted = x * 1.44269504f + magic;
  vf n = shifted - magic;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  vi exponent = __builtin_convertvector(n, vi) << 23;
  vf e = (vf)((vi)p + exponent);
  return given == given ? e : given;  // a NaN stays one
}

struct Float32 {
  typedef float type;
  static constexpr int PAIR = 1;  // elements of a unit
  static vf read(const float* p) { return load<vf>(p); }
  static void write(float* p, vf v) { store(p, v); }
  static float one(float x) { return x; }
  static vf multiply_add(vf c, uint32_t a, vu b) {
    float x;
    std::memcpy(&x, &a, 4);
    return c + x * (vf)b;
  }
};

struct BFloat16 {
  typedef uint16_t type;
  static constexpr int PAIR = 2;
  static vf read(const uint16_t* p) {
    return (vf)(__builtin_convertvector(load<vh>(p), vu) << 16);
  }
  static void write(uint16_t* p, vf v) {
#if defined(__AVX512BF16__)
    store(p, _mm512_cvtneps_pbh((__m512)v));
#else
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to the nearest, ties to even
    rounded = v == v ? rounded : (bits >> 16) | 0x40u;          // a NaN stays one
    store(p, __builtin_convertvector(rounded, vh));
#endif
  }
  static float one(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  static vf multiply_add(vf c, uint32_t a, vu b) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
#else
    uint32_t low = a << 16, high = a & 0xffff0000u;
    float x, y;
    std::memcpy(&x, &low, 4);
    std::memcpy(&y, &high, 4);
    return c + x * (vf)(b << 16) + y * (vf)(b & 0xffff0000u);
#endif
  }
};

// Two rows of numbers, kept as units of the dimension that runs across rows.
template <class E>
inline void write_across(uint32_t* to, vf upper, vf lower) {
  if constexpr (E::PAIR == 1) {
    store(to, upper);
  } else {
    uint16_t a[W], b[W];
    E::write(a, upper);
    E::write(b, lower);
    store(to, __builtin_convertvector(load<vh>(a), vu) |
                  (__builtin_convertvector(load<vh>(b), vu) << 16));
  }
}

// c[m][n] (+)= sum over k of a[m][k] b[k][n], all k in units; c in float32; n in whole vectors.
struct Operand {
  const uint32_t* at;
  idx row, unit;  // strides, in units
};

template <class E, int M, int N>
inline void tile(Operand a, const uint32_t* b, idx b_row, idx depth, float* c, idx c_row,
                 bool add) {
  vf sums[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sums[i][j] = add ? load<vf>(c + i * c_row + j * W) : vf{};
  for (idx k = 0; k < depth; ++k) {
    vu right[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) right[j] = load<vu>(b + k * b_row + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      uint32_t left = a.at[i * a.row + k * a.unit];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sums[i][j] = E::multiply_add(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(c + i * c_row + j * W, sums[i][j]);
}

template <class E, int N>
inline void tiles(int rows, Operand a, const uint32_t* b, idx b_row, idx depth, float* c,
                  idx c_row, bool add) {
  switch (rows) {
    case 1: return tile<E, 1, N>(a, b, b_row, depth, c, c_row, add);
    case 2: return tile<E, 2, N>(a, b, b_row, depth, c, c_row, add);
    case 3: return tile<E, 3, N>(a, b, b_row, depth, c, c_row, add);
    case 4: return tile<E, 4, N>(a, b, b_row, depth, c, c_row, add);
    case 5: return tile<E, 5, N>(a, b, b_row, depth, c, c_row, add);
    default: return tile<E, 6, N>(a, b, b_row, depth, c, c_row, add);
  }
}

template <class E>
void multiply(idx m, idx n, idx depth, Operand a, const uint32_t* b, idx b_row, float* c,
              idx c_row, bool add) {
  for (idx j = 0; j < n; j += VECTORS * W) {
    int vectors = int(std::min<idx>(VECTORS, (n - j) / W));
    for (idx i = 0; i < m; i += ROWS) {
      int rows = int(std::min<idx>(ROWS, m - i));
      Operand from = {a.at + i * a.row, a.row, a.unit};
      float* to = c + i * c_row + j;
      switch (vectors) {
        case 1: tiles<E, 1>(rows, from, b + j, b_row, depth, to, c_row, add); break;
        case 2: tiles<E, 2>(rows, from, b + j, b_row, depth, to, c_row, add); break;
        case 3: tiles<E, 3>(rows, from, b + j, b_row, depth, to, c_row, add); break;
        default: tiles<E, 4>(rows, from, b + j, b_row, depth, to, c_row, add);
      }
    }
  }
}
