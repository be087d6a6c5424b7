// What is done to one row of numbers at a time, each in as few passes as it can be:
// the residual addition with RMSNorm, SwiGLU, GELU, and the cross-entropy with its gradient.
#include "vector.h"

#include <vector>

namespace {

// The element types of up to three tensors, told apart at run time by the callers' codes.
template <class F>
void by_type(int code, F f) {
  if (code == 0) {
    f(Float32{});
  } else {
    f(BFloat16{});
  }
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exponential(-x)); }

// The normal distribution at x: its share below x, and its density. The share of the tail is
// Abramowitz & Stegun 7.1.26, off by less than 8e-8; written for the tail, its error shrinks with it.
struct Normal {
  vf below, density;
};
inline Normal normal(vf x) {
  vf size = maximum(x, -x), half = x * x * 0.5f;
  vf fall = half > 87.0f ? vf{} : exponential(-half);  // not the least number, times a large x
  vf t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
  vf p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  vf tail = p * t * fall * 0.5f;
  return {x > 0.0f ? 1.0f - tail : tail, fall * 0.39894228f};
}

}  // namespace

// total = x + delta; normed = total / rms(total) * weight. Without delta, total is not written.
extern "C" void add_rms_norm_forward(idx rows, idx width, const float* x, const void* delta,
                                     idx delta_type, const float* weight, float epsilon,
                                     float* total, void* normed, idx normed_type, float* inverse,
                                     idx threads) {
  by_type(delta_type, [&](auto d) {
    by_type(normed_type, [&](auto n) {
      typedef decltype(d) Delta;
      typedef decltype(n) Normed;
#pragma omp parallel for num_threads(threads) schedule(static)
      for (idx r = 0; r < rows; ++r) {
        const float* from = x + r * width;
        vf squares{};
        if (delta) {
          auto* add = (const typename Delta::type*)delta + r * width;
          float* to = total + r * width;
          for (idx i = 0; i < width; i += W) {
            vf v = load<vf>(from + i) + Delta::read(add + i);
            store(to + i, v);
            squares += v * v;
          }
          from = to;
        } else {
          for (idx i = 0; i < width; i += W) {
            vf v = load<vf>(from + i);
            squares += v * v;
          }
        }
        float scale = 1 / std::sqrt(sum(squares) / float(width) + epsilon);
        inverse[r] = scale;
        auto* out = (typename Normed::type*)normed + r * width;
        for (idx i = 0; i < width; i += W)
          Normed::write(out + i, load<vf>(from + i) * scale * load<vf>(weight + i));
      }
    });
  });
}

// d_x is what total's own gradient and the norm's add up to; d_weight is summed over rows.
extern "C" void add_rms_norm_backward(idx rows, idx width, const float* total,
                                      const float* inverse, const float* weight,
                                      const float* d_total, const void* d_normed,
                                      idx normed_type, float* d_x, void* d_delta, idx delta_type,
                                      float* d_weight, idx threads) {
  by_type(delta_type, [&](auto d) {
    by_type(normed_type, [&](auto n) {
      typedef decltype(d) Delta;
      typedef decltype(n) Normed;
      std::vector<float> partial(size_t(threads) * width, 0.0f);
      // One share of the rows for each thread, so that the sums do not depend on chance.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
      for (int share = 0; share < threads; ++share) {
        float* own = partial.data() + size_t(share) * width;
        for (idx r = rows * share / threads; r < rows * (share + 1) / threads; ++r) {
          const float* x = total + r * width;
          auto* g = (const typename Normed::type*)d_normed + r * width;
          float scale = inverse[r];
          vf dot{};
          for (idx i = 0; i < width; i += W) {
            vf along = Normed::read(g + i) * load<vf>(x + i) * scale;
            dot += along * load<vf>(weight + i);
            store(own + i, load<vf>(own + i) + along);
          }
          float mean = sum(dot) / float(width);
          for (idx i = 0; i < width; i += W) {
            vf v = scale * (Normed::read(g + i) * load<vf>(weight + i) -
                            load<vf>(x + i) * (scale * mean));
            if (d_total) v += load<vf>(d_total + r * width + i);
            store(d_x + r * width + i, v);
            if (d_delta) Delta::write((typename Delta::type*)d_delta + r * width + i, v);
          }
        }
      }
      for (idx i = 0; i < width; ++i) {
        float s = 0;
        for (int share = 0; share < threads; ++share) s += partial[size_t(share) * width + i];
        d_weight[i] = s;
      }
    });
  });
}

// out = silu(gate) * up, where a row holds the gates and then the ups.
extern "C" void swiglu_forward(idx rows, idx width, const void* gate_up, void* out, idx type,
                               idx threads) {
  by_type(type, [&](auto e) {
    typedef decltype(e) E;
    typedef typename E::type T;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx r = 0; r < rows; ++r) {
      auto *gate = (const T*)gate_up + r * 2 * width, *up = gate + width;
      T* to = (T*)out + r * width;
      for (idx i = 0; i < width; i += W) {
        vf g = E::read(gate + i);
        E::write(to + i, g * sigmoid(g) * E::read(up + i));
      }
    }
  });
}

extern "C" void swiglu_backward(idx rows, idx width, const void* gate_up, const void* d_out,
                                void* d_gate_up, idx type, idx threads) {
  by_type(type, [&](auto e) {
    typedef decltype(e) E;
    typedef typename E::type T;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx r = 0; r < rows; ++r) {
      auto *gate = (const T*)gate_up + r * 2 * width, *up = gate + width;
      auto* d = (const T*)d_out + r * width;
      T *d_gate = (T*)d_gate_up + r * 2 * width, *d_up = d_gate + width;
      for (idx i = 0; i < width; i += W) {
        vf g = E::read(gate + i), s = sigmoid(g), given = E::read(d + i);
        E::write(d_gate + i, given * E::read(up + i) * s * (1.0f + g * (1.0f - s)));
        E::write(d_up + i, given * g * s);
      }
    }
  });
}

// out = x times the share of the normal distribution below x.
extern "C" void gelu_forward(idx rows, idx width, const void* x, void* out, idx type,
                             idx threads) {
  by_type(type, [&](auto e) {
    typedef decltype(e) E;
    typedef typename E::type T;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx r = 0; r < rows; ++r)
      for (idx i = r * width; i < (r + 1) * width; i += W) {
        vf v = E::read((const T*)x + i);
        E::write((T*)out + i, v * normal(v).below);
      }
  });
}

extern "C" void gelu_backward(idx rows, idx width, const void* x, const void* d_out, void* d_x,
                              idx type, idx threads) {
  by_type(type, [&](auto e) {
    typedef decltype(e) E;
    typedef typename E::type T;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx r = 0; r < rows; ++r)
      for (idx i = r * width; i < (r + 1) * width; i += W) {
        vf v = E::read((const T*)x + i);
        Normal n = normal(v);
        E::write((T*)d_x + i, E::read((const T*)d_out + i) * (n.below + v * n.density));
      }
  });
}

// loss = weight * (log sum exp(logits) - logits[target]); if asked, the logits are replaced by
// their gradient, so that no second matrix of the vocabulary's width is ever held.
extern "C" void cross_entropy(idx rows, idx vocabulary, void* logits, idx type,
                              const idx* target, const float* weight, float* loss, idx gradient,
                              idx threads) {
  by_type(type, [&](auto e) {
    typedef decltype(e) E;
    typedef typename E::type T;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (idx r = 0; r < rows; ++r) {
      T* row = (T*)logits + r * vocabulary;
      idx whole = vocabulary / W * W;
      vf top = splat(-INFINITY);
      for (idx i = 0; i < whole; i += W) top = maximum(top, E::read(row + i));
      float peak = largest(top);
      float rest[W] = {};
      for (idx i = whole; i < vocabulary; ++i) peak = std::max(peak, E::one(row[i]));
      vf total{};
      for (idx i = 0; i < whole; i += W) total += exponential(E::read(row + i) - peak);
      float s = sum(total);
      for (idx i = whole; i < vocabulary; ++i) {
        rest[i - whole] = std::exp(E::one(row[i]) - peak);
        s += rest[i - whole];
      }
      loss[r] = weight[r] * (peak + std::log(s) - E::one(row[target[r]]));
      if (!gradient) continue;
      float right = E::one(row[target[r]]) - peak;
      float scale = weight[r] / s;
      for (idx i = 0; i < whole; i += W)
        E::write(row + i, exponential(E::read(row + i) - peak) * scale);
      T tail[W];
      if (whole < vocabulary) {
        vf v = load<vf>(rest);
        E::write(tail, v * scale);
        std::memcpy(row + whole, tail, size_t(vocabulary - whole) * sizeof(T));
      }
      E::write(tail, splat(std::exp(right) * scale - weight[r]));
      row[target[r]] = tail[0];
    }
  });
}

// Whether the processor itself multiplies pairs of bfloat16; if not, float32 is faster.
extern "C" int multiplies_bfloat16() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}
