// Attention over documents of any length, laid end to end: forward and backward.
//
// Work is cut into (document, key head), so no position ever sees another document and no
// mask is read. Queries are taken BLOCK rows at a time; the backward pass recomputes the
// weights from the saved log-sum-exp (Dao et al., "FlashAttention", 2022). Rotary
// positions are applied while rows are read, and undone while gradients are written.
#include "vector.h"

#include <vector>

namespace {

constexpr idx BLOCK = 48, KEYS = 192;  // queries, keys: a square of scores stays in the cache

struct Shape {
  idx heads, key_heads, width;  // width: of a head, a multiple of 16
  idx causal;
  float scale;
};

// Rows of one head: `at` its first element, `stride` between tokens, in elements.
template <class T>
struct Rows {
  T* at;
  idx stride;
  T* operator[](idx token) const { return at + token * stride; }
};

struct Turn {  // half-width tables; null turns nothing
  const float *cosine, *sine;
};

// Read a row and turn it by its position's angle (sign +1), or back (sign -1).
template <class E>
inline void read_row(const typename E::type* from, Turn turn, idx token, idx width, float* to) {
  idx half = width / 2;
  if (!turn.cosine) {
    for (idx h = 0; h < width; h += W) store(to + h, E::read(from + h));
    return;
  }
  const float *cosine = turn.cosine + token * half, *sine = turn.sine + token * half;
  if (half % W == 0) {
    for (idx h = 0; h < half; h += W) {
      vf x = E::read(from + h), y = E::read(from + half + h);
      vf c = load<vf>(cosine + h), s = load<vf>(sine + h);
      store(to + h, x * c - y * s);
      store(to + half + h, y * c + x * s);
    }
  } else {
    for (idx h = 0; h < half; ++h) {
      float x = E::one(from[h]), y = E::one(from[half + h]);
      to[h] = x * cosine[h] - y * sine[h];
      to[half + h] = y * cosine[h] + x * sine[h];
    }
  }
}

template <class E>
inline void write_row(float* from, Turn turn, idx token, idx width, typename E::type* to) {
  idx half = width / 2;
  if (turn.cosine) {
    const float *cosine = turn.cosine + token * half, *sine = turn.sine + token * half;
    for (idx h = 0; h < half; ++h) {
      float x = from[h], y = from[half + h];
      from[h] = x * cosine[h] + y * sine[h];
      from[half + h] = y * cosine[h] - x * sine[h];
    }
  }
  for (idx h = 0; h < width; h += W) E::write(to + h, load<vf>(from + h));
}

// What products need of a block of rows: units along the width (plain), the same with rows
// across (turned, for keys), and units along the tokens (paired).
template <class E>
void pack(Rows<const typename E::type> rows, Turn turn, idx first, idx count, idx padded,
          idx width, uint32_t* plain, uint32_t* turned, uint32_t* paired) {
  idx units = width / E::PAIR;
  alignas(64) float buffer[2][1024];
  alignas(64) uint32_t line[1024];
  for (idx t = 0; t < padded; t += E::PAIR) {
    for (idx p = 0; p < E::PAIR; ++p) {
      if (t + p < count) {
        read_row<E>(rows[first + t + p], turn, first + t + p, width, buffer[p]);
      } else {
        std::memset(buffer[p], 0, width * sizeof(float));
      }
      uint32_t* row = plain ? plain + (t + p) * units : line;
      for (idx h = 0; h < width; h += W)
        E::write((typename E::type*)row + h, load<vf>(buffer[p] + h));
      if (turned)
        for (idx u = 0; u < units; ++u) turned[u * padded + t + p] = row[u];
    }
    if (paired)
      for (idx h = 0; h < width; h += W)
        write_across<E>(paired + t / E::PAIR * width + h, load<vf>(buffer[0] + h),
                        load<vf>(buffer[E::PAIR - 1] + h));
  }
}

inline idx round_up(idx n, idx step) { return (n + step - 1) / step * step; }

struct Scratch {
  std::vector<uint32_t> bytes;
  size_t used = 0;
  template <class T>
  T* take(idx count) {
    size_t start = used;
    used += round_up(count, 16);
    return (T*)(bytes.data() + start);
  }
  void reserve(size_t units) {
    used = 0;
    if (bytes.size() < units) bytes.resize(units);
  }
};

template <class E>
void forward_one(const Shape& shape, idx first, idx length, idx key_head,
                 const typename E::type* q, idx q_stride, const typename E::type* k, idx k_stride,
                 const typename E::type* v, idx v_stride, Turn turn, typename E::type* out,
                 float* lse, Scratch& scratch) {
  typedef typename E::type T;
  idx width = shape.width, units = width / E::PAIR, padded = round_up(length, 16);
  idx group = shape.heads / shape.key_heads;
  scratch.reserve(2 * padded * width + BLOCK * (2 * padded + 2 * width) + 128);
  uint32_t* keys = scratch.take<uint32_t>(padded * units);
  uint32_t* values = scratch.take<uint32_t>(padded / E::PAIR * width);
  uint32_t* queries = scratch.take<uint32_t>(BLOCK * units);
  float* scores = scratch.take<float>(BLOCK * padded);
  uint32_t* weights = scratch.take<uint32_t>(BLOCK * padded / E::PAIR);
  float* answer = scratch.take<float>(BLOCK * width);
  pack<E>({k + key_head * width, k_stride}, turn, first, length, padded, width, nullptr, keys,
          nullptr);
  pack<E>({v + key_head * width, v_stride}, {nullptr, nullptr}, first, length, padded, width,
          nullptr, nullptr, values);
  for (idx head = key_head * group; head < (key_head + 1) * group; ++head) {
    for (idx start = 0; start < length; start += BLOCK) {
      idx count = std::min(BLOCK, length - start);
      idx seen = shape.causal ? round_up(start + count, 16) : padded;
      pack<E>({q + head * width, q_stride}, turn, first + start, count,
              round_up(count, E::PAIR), width, queries, nullptr, nullptr);
      multiply<E>(count, seen, units, {queries, units, 1}, keys, padded, scores, seen, false);
      float inverse[BLOCK];
      for (idx i = 0; i < count; ++i) {
        float* row = scores + i * seen;
        idx valid = shape.causal ? start + i + 1 : length;
        idx whole = round_up(valid, W);
        for (idx j = valid; j < whole; ++j) row[j] = -INFINITY;
        vf top = load<vf>(row);
        for (idx j = W; j < whole; j += W) top = maximum(top, load<vf>(row + j));
        float peak = largest(top) * shape.scale;
        vf total{};
        T* weight = (T*)(weights + i * seen / E::PAIR);
        for (idx j = 0; j < whole; j += W) {
          vf x = load<vf>(row + j) * shape.scale - peak;
          vf e = x < -80.0f ? vf{} : exponential(x);
          total += e;
          E::write(weight + j, e);
        }
        for (idx j = whole; j < seen; j += W) E::write(weight + j, vf{});
        float s = sum(total);
        inverse[i] = 1 / s;
        lse[head + (first + start + i) * shape.heads] = peak + std::log(s);
      }
      multiply<E>(count, width, seen / E::PAIR, {weights, seen / E::PAIR, 1}, values, width,
                  answer, width, false);
      for (idx i = 0; i < count; ++i) {
        T* to = out + (first + start + i) * shape.heads * width + head * width;
        for (idx h = 0; h < width; h += W)
          E::write(to + h, load<vf>(answer + i * width + h) * inverse[i]);
      }
    }
  }
}

template <class E>
void backward_one(const Shape& shape, idx first, idx length, idx key_head,
                  const typename E::type* q, idx q_stride, const typename E::type* k,
                  idx k_stride, const typename E::type* v, idx v_stride, Turn turn,
                  const typename E::type* out, const float* lse, const typename E::type* d_out,
                  typename E::type* dq, idx dq_stride, typename E::type* dk, idx dk_stride,
                  typename E::type* dv, idx dv_stride, Scratch& scratch) {
  typedef typename E::type T;
  idx width = shape.width, units = width / E::PAIR, padded = round_up(length, 16);
  idx group = shape.heads / shape.key_heads;
  scratch.reserve(5 * padded * width + 6 * BLOCK * width + 5 * BLOCK * KEYS + 512);
  uint32_t* keys = scratch.take<uint32_t>(padded * units);
  uint32_t* paired_keys = scratch.take<uint32_t>(padded / E::PAIR * width);
  uint32_t* values = scratch.take<uint32_t>(padded * units);
  float* d_keys = scratch.take<float>(padded * width);
  float* d_values = scratch.take<float>(padded * width);
  uint32_t* queries = scratch.take<uint32_t>(BLOCK * units);
  uint32_t* paired_queries = scratch.take<uint32_t>(BLOCK / E::PAIR * width);
  uint32_t* gradients = scratch.take<uint32_t>(BLOCK * units);
  uint32_t* paired_gradients = scratch.take<uint32_t>(BLOCK / E::PAIR * width);
  float* d_queries = scratch.take<float>(BLOCK * width);
  float* scores = scratch.take<float>(BLOCK * KEYS);
  float* d_weights = scratch.take<float>(BLOCK * KEYS);
  uint32_t* paired_weights = scratch.take<uint32_t>(BLOCK * KEYS / E::PAIR);
  uint32_t* d_scores = scratch.take<uint32_t>(BLOCK * KEYS / E::PAIR);
  uint32_t* paired_d_scores = scratch.take<uint32_t>(BLOCK * KEYS / E::PAIR);
  std::memset(d_keys, 0, padded * width * sizeof(float));
  std::memset(d_values, 0, padded * width * sizeof(float));
  pack<E>({k + key_head * width, k_stride}, turn, first, length, padded, width, nullptr, keys,
          paired_keys);
  pack<E>({v + key_head * width, v_stride}, {nullptr, nullptr}, first, length, padded, width,
          nullptr, values, nullptr);
  for (idx head = key_head * group; head < (key_head + 1) * group; ++head) {
    Rows<const T> outs = {out + head * width, shape.heads * width};
    Rows<const T> d_outs = {d_out + head * width, shape.heads * width};
    for (idx start = 0; start < length; start += BLOCK) {
      idx count = std::min(BLOCK, length - start), even = round_up(count, E::PAIR);
      idx seen = shape.causal ? std::min(padded, round_up(start + count, 16)) : padded;
      pack<E>({q + head * width, q_stride}, turn, first + start, count, even, width, queries,
              nullptr, paired_queries);
      pack<E>(d_outs, {nullptr, nullptr}, first + start, count, even, width, gradients, nullptr,
              paired_gradients);
      float delta[BLOCK + 1] = {}, logs[BLOCK + 1] = {};
      for (idx i = 0; i < count; ++i) {
        vf dot{};
        for (idx h = 0; h < width; h += W)
          dot += E::read(outs[first + start + i] + h) * E::read(d_outs[first + start + i] + h);
        delta[i] = sum(dot);
        logs[i] = lse[head + (first + start + i) * shape.heads];
      }
      for (idx left = 0; left < seen; left += KEYS) {
        idx across = std::min(KEYS, seen - left);
        multiply<E>(count, across, units, {queries, units, 1}, keys + left, padded, scores, KEYS,
                    false);
        multiply<E>(count, across, units, {gradients, units, 1}, values + left, padded,
                    d_weights, KEYS, false);
        vi lane;
        for (int w = 0; w < W; ++w) lane[w] = w;
        for (idx i = 0; i < even; i += E::PAIR) {
          for (idx j = 0; j < across; j += W) {
            vf p[2], d[2];
            for (idx r = 0; r < E::PAIR; ++r) {
              idx valid = i + r >= count ? 0 : shape.causal ? start + i + r + 1 : length;
              vf x = load<vf>(scores + (i + r) * KEYS + j) * shape.scale - logs[i + r];
              vf g = load<vf>(d_weights + (i + r) * KEYS + j) - delta[i + r];
              vi inside = lane < int32_t(std::clamp<idx>(valid - left - j, 0, W));
              vf e = exponential(x);
              p[r] = (vf)((vi)e & inside);
              d[r] = (vf)((vi)(e * g * shape.scale) & inside);
              E::write((T*)(d_scores + (i + r) * KEYS / E::PAIR) + j, d[r]);
            }
            write_across<E>(paired_weights + i / E::PAIR * KEYS + j, p[0], p[E::PAIR - 1]);
            write_across<E>(paired_d_scores + i / E::PAIR * KEYS + j, d[0], d[E::PAIR - 1]);
          }
        }
        multiply<E>(count, width, across / E::PAIR, {d_scores, KEYS / E::PAIR, 1},
                    paired_keys + left / E::PAIR * width, width, d_queries, width, left > 0);
        multiply<E>(across, width, even / E::PAIR, {paired_weights, 1, KEYS}, paired_gradients,
                    width, d_values + left * width, width, true);
        multiply<E>(across, width, even / E::PAIR, {paired_d_scores, 1, KEYS}, paired_queries,
                    width, d_keys + left * width, width, true);
      }
      for (idx i = 0; i < count; ++i) {
        idx token = first + start + i;
        write_row<E>(d_queries + i * width, turn, token, width, dq + token * dq_stride + head * width);
      }
    }
  }
  for (idx t = 0; t < length; ++t) {
    idx token = first + t;
    write_row<E>(d_keys + t * width, turn, token, width, dk + token * dk_stride + key_head * width);
    write_row<E>(d_values + t * width, {nullptr, nullptr}, token, width,
                 dv + token * dv_stride + key_head * width);
  }
}

}  // namespace

// Tensors are rows of tokens: q (N, A, H), k and v (N, K, H) with a stride between tokens; out,
// d_out (N, A, H) dense; lse (N, A). Documents: first token and length, the longest first.
#define FORWARD(NAME, E)                                                                        \
  extern "C" void NAME(idx documents, const idx* first, const idx* length, idx heads,           \
                       idx key_heads, idx width, idx causal, float scale, const void* q,        \
                       idx q_stride, const void* k, idx k_stride, const void* v, idx v_stride,  \
                       const float* cosine, const float* sine, void* out, float* lse,           \
                       idx threads) {                                                           \
    typedef E::type T;                                                                          \
    Shape shape = {heads, key_heads, width, causal, scale};                                     \
    _Pragma("omp parallel num_threads(threads)") {                                              \
      Scratch scratch;                                                                          \
      _Pragma("omp for schedule(dynamic)") for (idx job = 0; job < documents * key_heads;       \
                                                ++job) {                                        \
        idx d = job / key_heads;                                                                \
        forward_one<E>(shape, first[d], length[d], job % key_heads, (const T*)q, q_stride,      \
                       (const T*)k, k_stride, (const T*)v, v_stride, {cosine, sine}, (T*)out,   \
                       lse, scratch);                                                           \
      }                                                                                         \
    }                                                                                           \
  }
FORWARD(attention_forward_float32, Float32)
FORWARD(attention_forward_bfloat16, BFloat16)

#define BACKWARD(NAME, E)                                                                       \
  extern "C" void NAME(idx documents, const idx* first, const idx* length, idx heads,           \
                       idx key_heads, idx width, idx causal, float scale, const void* q,        \
                       idx q_stride, const void* k, idx k_stride, const void* v, idx v_stride,  \
                       const float* cosine, const float* sine, const void* out,                 \
                       const float* lse, const void* d_out, void* dq, idx dq_stride, void* dk,  \
                       idx dk_stride, void* dv, idx dv_stride, idx threads) {                   \
    typedef E::type T;                                                                          \
    Shape shape = {heads, key_heads, width, causal, scale};                                     \
    _Pragma("omp parallel num_threads(threads)") {                                              \
      Scratch scratch;                                                                          \
      _Pragma("omp for schedule(dynamic)") for (idx job = 0; job < documents * key_heads;       \
                                                ++job) {                                        \
        idx d = job / key_heads;                                                                \
        backward_one<E>(shape, first[d], length[d], job % key_heads, (const T*)q, q_stride,     \
                        (const T*)k, k_stride, (const T*)v, v_stride, {cosine, sine},           \
                        (const T*)out, lse, (const T*)d_out, (T*)dq, dq_stride, (T*)dk,         \
                        dk_stride, (T*)dv, dv_stride, scratch);                                 \
      }                                                                                         \
    }                                                                                           \
  }
BACKWARD(attention_backward_float32, Float32)
BACKWARD(attention_backward_bfloat16, BFloat16)
