// The polar factor of matrices, by an iteration of odd polynomials; see ops.orthogonalize.
// Each matrix stays on one core and in its cache; symmetric products are half computed.
#include "vector.h"

#include <vector>

namespace {

constexpr idx BLOCK = 48, EDGE = 16;

// to[c][r] = from[r][c], in squares that fit the nearest cache.
void transpose(const uint32_t* from, idx rows, idx columns, uint32_t* to) {
  for (idx r = 0; r < rows; r += EDGE)
    for (idx c = 0; c < columns; c += EDGE)
      for (idx j = c; j < std::min(c + EDGE, columns); ++j)
        for (idx i = r; i < std::min(r + EDGE, rows); ++i)
          to[j * rows + i] = from[i * columns + j];
}

// product = left right, known to be symmetric; left in rows, right in units across rows.
void symmetric(const uint16_t* left, idx size, idx depth, const uint32_t* right,
               float* product) {
  for (idx i = 0; i < size; i += BLOCK) {
    idx rows = std::min(BLOCK, size - i), from = i / EDGE * EDGE;
    multiply<BFloat16>(rows, size - from, depth / 2,
                       {(const uint32_t*)left + i * depth / 2, depth / 2, 1}, right + from, size,
                       product + i * size + from, size, false);
  }
  for (idx i = 0; i < size; i += EDGE)
    for (idx j = 0; j < i; j += EDGE)
      for (idx r = i; r < i + EDGE; ++r)
        for (idx c = j; c < j + EDGE; ++c) product[r * size + c] = product[c * size + r];
}

struct Space {
  std::vector<uint16_t> rows;
  std::vector<uint32_t> turned, paired, gram_turned;
  std::vector<float> gram, square, block;
};

void one(idx m, idx n, uint16_t* x, const float* polynomials, idx steps, Space& space) {
  space.rows.resize(m * m);
  space.turned.resize(m * n / 2);
  space.paired.resize(m * n / 2);
  space.gram_turned.resize(m * m / 2);
  space.gram.resize(m * m);
  space.square.resize(m * m);
  space.block.resize(BLOCK * n);
  vf squares{};
  for (idx i = 0; i < m * n; i += W) {
    vf v = BFloat16::read(x + i);
    squares += v * v;
  }
  float scale = 1 / (std::sqrt(sum(squares)) * 1.01f + 1e-7f);
  for (idx i = 0; i < m * n; i += W) BFloat16::write(x + i, BFloat16::read(x + i) * scale);
  for (idx step = 0; step < steps; ++step) {
    const float *p = polynomials + 3 * step, a = p[0], b = p[1], c = p[2];
    transpose((const uint32_t*)x, m, n / 2, space.turned.data());
    for (idx r = 0; r < m; r += 2)
      for (idx i = 0; i < n; i += W)
        write_across<BFloat16>(space.paired.data() + r / 2 * n + i,
                               BFloat16::read(x + r * n + i), BFloat16::read(x + (r + 1) * n + i));
    float *gram = space.gram.data(), *square = space.square.data();
    symmetric(x, m, n, space.turned.data(), gram);
    uint16_t* rows = space.rows.data();
    for (idx i = 0; i < m * m; i += W) BFloat16::write(rows + i, load<vf>(gram + i));
    transpose((const uint32_t*)rows, m, m / 2, space.gram_turned.data());
    symmetric(rows, m, m, space.gram_turned.data(), square);
    for (idx i = 0; i < m * m; i += W)
      BFloat16::write(rows + i, load<vf>(gram + i) * b + load<vf>(square + i) * c);
    for (idx i = 0; i < m; i += BLOCK) {
      idx count = std::min(BLOCK, m - i);
      float* block = space.block.data();
      multiply<BFloat16>(count, n, m / 2, {(const uint32_t*)rows + i * m / 2, m / 2, 1},
                         space.paired.data(), n, block, n, false);
      for (idx k = 0; k < count * n; k += W)
        BFloat16::write(x + i * n + k, BFloat16::read(x + i * n + k) * a + load<vf>(block + k));
    }
  }
}

}  // namespace

// A stack of matrices (count, rows, columns) of bfloat16, rows <= columns, both multiples of
// 16, replaced by their polar factors; polynomials: (steps, 3).
extern "C" void orthogonalize(idx count, idx rows, idx columns, void* stack,
                              const float* polynomials, idx steps, idx threads) {
#pragma omp parallel num_threads(threads)
  {
    Space space;
#pragma omp for schedule(dynamic)
    for (idx i = 0; i < count; ++i)
      one(rows, columns, (uint16_t*)stack + i * rows * columns, polynomials, steps, space);
  }
}
