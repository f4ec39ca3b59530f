// The forward and backward pass of a small model, for one instruction set; cpp_step.cpp includes it once for each it knows.
//
// s positions of a row, h hidden, f ffn, n heads of d channels, v columns of the head, m asked positions. Every buffer's rows are
// filled up with zeros to whole vectors ("stride"), so that no loop has a tail and what is added over is right.

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int Ints __attribute__((vector_size(4 * LANES)));
constexpr long WIDEST = REGISTERS == 32 ? 4 : 2;  // vectors of a tile's row
constexpr long ATTENDED = 32;                     // rows of attention made at once

INLINE long padded(long n) { return (n + LANES - 1) / LANES * LANES; }
INLINE Vec& at(float* x) { return *reinterpret_cast<Vec*>(x); }
INLINE const Vec& at(const float* x) { return *reinterpret_cast<const Vec*>(x); }
INLINE Vec all(float x) { return x - Vec{}; }
INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
INLINE float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

// e^x to 1e-7 of itself, 0 below -80 (Cephes' expf); NaN stays NaN.
INLINE Vec exponential(Vec x) {
  const Vec magic = all(12582912.f), capped = x > 88.f ? all(88.f) : x, turns = (capped * 1.44269504f + magic) - magic;
  const Vec r = (capped - turns * .693359375f) + turns * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Ints power = (__builtin_convertvector(turns, Ints) + 127) << 23;
  return x < -80.f ? Vec{} : p * reinterpret_cast<const Vec&>(power);
}

// c[M, NV vectors] (+)= a[M, k] b[k, NV vectors], where a's rows are ra and its columns ca floats apart.
template <int M, int NV>
INLINE void tile(long k, const float* a, long ra, long ca, const float* b, long ldb, float* c, long ldc, bool add) {
  Vec sums[M][NV];
#pragma GCC unroll 16
  for (int r = 0; r < M; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) sums[r][v] = add ? at(c + r * ldc + v * LANES) : Vec{};
  for (long i = 0; i < k; i++) {
    Vec row[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) row[v] = at(b + i * ldb + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < M; r++) {
      const Vec x = all(a[r * ra + i * ca]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sums[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < M; r++)
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) at(c + r * ldc + v * LANES) = sums[r][v];
}

template <int NV>
void panel(long m, long k, const float* a, long ra, long ca, const float* b, long ldb, float* c, long ldc, bool add) {
  constexpr int M = (REGISTERS == 32 ? 24 : 12) / NV > 14 ? 14 : (REGISTERS == 32 ? 24 : 12) / NV;
  long i = 0;
  for (; i + M <= m; i += M) tile<M, NV>(k, a + i * ra, ra, ca, b, ldb, c + i * ldc, ldc, add);
  for (; i + 3 <= m; i += 3) tile<3, NV>(k, a + i * ra, ra, ca, b, ldb, c + i * ldc, ldc, add);
  for (; i < m; i++) tile<1, NV>(k, a + i * ra, ra, ca, b, ldb, c + i * ldc, ldc, add);
}

// c[m, n] (+)= a[m, k] b[k, n]; n in whole vectors.
void product(long m, long n, long k, const float* a, long ra, long ca, const float* b, long ldb, float* c, long ldc, bool add) {
  for (long j = 0; j < n; j += WIDEST * LANES) {
    const long vectors = (n - j + LANES - 1) / LANES;
    if (WIDEST == 4 && vectors >= 4) panel<WIDEST>(m, k, a, ra, ca, b + j, ldb, c + j, ldc, add);
    else if (WIDEST == 4 && vectors == 3) panel<WIDEST - 1>(m, k, a, ra, ca, b + j, ldb, c + j, ldc, add);
    else if (vectors >= 2) panel<2>(m, k, a, ra, ca, b + j, ldb, c + j, ldc, add);
    else panel<1>(m, k, a, ra, ca, b + j, ldb, c + j, ldc, add);
  }
}

struct Norm {  // of one place in the network
  Matrix weight, gradient, normed, scale;  // [1, h], [1, h], [s, h] before the weight, [s, 1]
  float eps = 0;
  void size(const Shape& o) {
    weight.size(1, o.h), gradient.size(1, o.h), normed.size(o.s, o.h), scale.size(o.s, 1), eps = o.eps;
  }
  // x / rms(x) * weight
  void forward(long rows, const Matrix& x, Matrix& y) {
    for (long i = 0; i < rows; i++) {
      Vec squares{};
      for (long j = 0; j < x.stride; j += LANES) squares += at(x.row(i) + j) * at(x.row(i) + j);
      const float factor = 1 / std::sqrt(sum(squares) / x.columns + eps);
      *scale.row(i) = factor;
      for (long j = 0; j < x.stride; j += LANES) at(normed.row(i) + j) = at(x.row(i) + j) * factor;
    }
    again(rows, y);
  }
  void again(long rows, Matrix& y) const {  // what it said
    for (long i = 0; i < rows; i++)
      for (long j = 0; j < y.stride; j += LANES) at(y.row(i) + j) = at(normed.row(i) + j) * at(weight.row(0) + j);
  }
  // dx += the gradient through it of dy
  void backward(long rows, const Matrix& dy, Matrix& dx) {
    for (long i = 0; i < rows; i++) {
      Vec along{};
      for (long j = 0; j < dy.stride; j += LANES) {
        const Vec both = at(dy.row(i) + j) * at(normed.row(i) + j);
        at(gradient.row(0) + j) += both;
        along += both * at(weight.row(0) + j);
      }
      const float mean = sum(along) / dy.columns, factor = *scale.row(i);
      for (long j = 0; j < dy.stride; j += LANES)
        at(dx.row(i) + j) += (at(dy.row(i) + j) * at(weight.row(0) + j) - at(normed.row(i) + j) * mean) * factor;
    }
  }
};

struct Linear {  // y = x weight^T; inputs and outputs as the buffers of x and y have them
  Matrix weight, across, gradient;  // [out, in], its transpose, [out, in]
  void size(long out, long in) { weight.size(out, in), across.size(in, out), gradient.size(out, in); }
  void transpose() {
    for (long i = 0; i < weight.rows; i++)
      for (long j = 0; j < weight.columns; j++) across.row(j)[i] = weight.row(i)[j];
  }
  void forward(long rows, const Matrix& x, Matrix& y, bool add = false) const {
    product(rows, weight.rows, weight.columns, x.row(0), x.stride, 1, across.row(0), across.stride, y.row(0), y.stride, add);
  }
  void backward(long rows, const Matrix& x, const Matrix& dy, Matrix& dx) {
    product(rows, weight.columns, weight.rows, dy.row(0), dy.stride, 1, weight.row(0), weight.stride, dx.row(0), dx.stride, false);
    product(weight.rows, weight.columns, rows, dy.row(0), 1, dy.stride, x.row(0), x.stride, gradient.row(0), gradient.stride, true);
  }
};

struct Head {  // of attention: what it keeps of one row of tokens
  Matrix q, k, v, k_across, v_across, chance;  // [s, d] x 3, [d, s] x 2, [s, s]; q has the scale of scores
};

struct Block {
  Norm norm1, norm2;
  Linear qkv, out, up, down;  // up: all gates, then all ups, each filled to whole vectors
  Matrix x, middle, attended, gate_up, gated;
  std::vector<Head> heads;
};

class Net : public Step {
  Shape o;
  long f;  // the stride of ffn
  std::vector<Block> blocks;
  Norm last;
  Linear table;          // the head's rows, scaled
  Matrix words, grown;   // [ids, h]: the embedding as given, and its gradient
  Matrix x, y, dx, dy, qkv, d_qkv, d_attended, d_gated, d_gate_up, asked_x, logits, d_asked, d_chance, d_q, d_k, d_v;

 public:
  explicit Net(const Shape& shape) : o(shape), f(padded(o.f)), blocks(o.layers) {
    const long w = o.n * o.d;
    for (Block& b : blocks) {
      for (Norm* norm : {&b.norm1, &b.norm2}) norm->size(o);
      b.qkv.size(3 * w, o.h), b.out.size(o.h, w), b.up.size(2 * f, o.h), b.down.size(o.h, o.f);
      b.x.size(o.s, o.h), b.middle.size(o.s, o.h), b.gate_up.size(o.s, 2 * f), b.gated.size(o.s, o.f);
      b.attended.size(o.s, w, LANES), b.heads.resize(o.n);
      for (Head& a : b.heads) {
        for (Matrix* m : {&a.q, &a.k, &a.v}) m->size(o.s, o.d);
        a.k_across.size(o.d, o.s), a.v_across.size(o.d, o.s), a.chance.size(o.s, o.s);
      }
    }
    last.size(o), table.size(o.v, o.h), words.size(o.ids, o.h), grown.size(o.ids, o.h);
    for (Matrix* m : {&x, &y, &dx, &dy, &asked_x, &d_asked}) m->size(o.s, o.h);
    for (Matrix* m : {&d_q, &d_k, &d_v}) m->size(o.s, o.d);
    qkv.size(o.s, 3 * w), d_qkv.size(o.s, 3 * w), d_attended.size(o.s, w, LANES), d_gated.size(o.s, o.f);
    d_gate_up.size(o.s, 2 * f), logits.size(o.s, o.v), d_chance.size(o.s, o.s);
  }

  // Weights in, gradients out, in the order of `GPT.named_parameters`: table, blocks, last norm, and a head that is not the table.
  void read(const std::vector<const float*>& given) override {
    walk(given, [&](const float* from, Matrix& to, Matrix& gradient, float factor, bool paired) {
      for (long i = 0; i < to.rows; i++)
        for (long j = 0; j < to.columns; j++)
          if (!paired) to.row(i)[j] = from[i * to.columns + j] * factor;
          else if (i < 2 * o.f) to.row(i / 2 + i % 2 * f)[j] = from[i * to.columns + j];
      gradient.clear();
    });
    for (Block& b : blocks)
      for (Linear* one : {&b.qkv, &b.out, &b.up, &b.down}) one->transpose();
    table.transpose();
  }
  void write(const std::vector<float*>& wanted) override {
    walk(wanted, [&](float* into, Matrix&, Matrix& gradient, float factor, bool paired) {
      for (long i = 0; i < gradient.rows; i++)
        for (long j = 0; j < gradient.columns; j++)
          if (!paired) into[i * gradient.columns + j] += gradient.row(i)[j] * factor;
          else if (i < 2 * o.f) into[i * gradient.columns + j] += gradient.row(i / 2 + i % 2 * f)[j];
    });
  }
  template <class Pointer, class Visit>
  void walk(const std::vector<Pointer>& given, Visit visit) {
    auto one = given.begin();
    const Pointer embedding = *one;
    visit(*one++, words, grown, 1, false);
    for (Block& b : blocks) {
      visit(*one++, b.norm1.weight, b.norm1.gradient, 1, false), visit(*one++, b.qkv.weight, b.qkv.gradient, 1, false);
      visit(*one++, b.out.weight, b.out.gradient, o.branch, false), visit(*one++, b.norm2.weight, b.norm2.gradient, 1, false);
      visit(*one++, b.up.weight, b.up.gradient, 1, true), visit(*one++, b.down.weight, b.down.gradient, o.branch, false);
    }
    visit(*one++, last.weight, last.gradient, 1, false);
    visit(one == given.end() ? embedding : *one, table.weight, table.gradient, o.logit, false);
  }

  void row(const Row& r, bool learn) override {
    for (long i = 0; i < o.s; i++) std::copy_n(words.row(r.inputs[i]), words.stride, input(0).row(i));
    for (long l = 0; l < o.layers; l++) forward(blocks[l], input(l + 1), r);
    last.forward(o.s, x, y);
    for (long i = 0; i < r.m; i++) std::copy_n(y.row(r.asked[i]), y.stride, asked_x.row(i));
    table.forward(r.m, asked_x, logits);
    for (long i = 0; i < r.m; i++) say(logits.row(i), r, i, learn);
    if (!learn) return;
    table.backward(r.m, asked_x, logits, d_asked);
    dy.clear(), dx.clear();
    for (long i = 0; i < r.m; i++) std::copy_n(d_asked.row(i), dy.stride, dy.row(r.asked[i]));
    last.backward(o.s, dy, dx);
    for (long l = o.layers; l-- > 0;) backward(blocks[l], r);
    for (long i = 0; i < o.s; i++)
      for (long j = 0; j < dx.stride; j += LANES) at(grown.row(r.inputs[i]) + j) += at(dx.row(i) + j);
  }

 private:
  Matrix& input(long layer) { return layer < o.layers ? blocks[layer].x : x; }

  // One asked position: its nll and hit; its logits become their slope.
  void say(float* z, const Row& r, long i, bool learn) {
    const float own = z[r.targets[i]];
    fill(z, o.v, table.across.stride, -INFINITY);
    const float top = largest(z, o.v);
    Vec ties{};
    for (long j = 0; own >= top && j < o.v; j += LANES) ties += at(z + j) == top ? all(1) : Vec{};
    const float total = exponentials(z, o.v, top), tied = sum(ties);
    r.nll[i] = std::log(total) + top - own;
    r.hit[i] = tied ? 1 / tied : 0;
    if (!learn) return;
    const float share = r.weights[i] * r.per_weight / total;
    for (long j = 0; j < o.v; j += LANES) at(z + j) *= all(share);
    z[r.targets[i]] -= r.weights[i] * r.per_weight;
  }

  static void fill(float* z, long from, long until, float value) {
    for (long j = from; j < until; j++) z[j] = value;
  }
  static float largest(const float* z, long m) {  // of whole vectors
    Vec found = at(z);
    for (long j = LANES; j < m; j += LANES) found = larger(found, at(z + j));
    float top = found[0];
    for (int i = 1; i < LANES; i++) top = found[i] > top ? found[i] : top;
    return top;
  }
  static float exponentials(float* z, long m, float top) {  // in their place -> their sum
    Vec sums{};
    for (long j = 0; j < m; j += LANES) sums += at(z + j) = exponential(at(z + j) - top);
    return sum(sums);
  }

  void forward(Block& b, Matrix& next, const Row& r) {
    b.norm1.forward(o.s, b.x, y);
    b.qkv.forward(o.s, y, qkv);
    for (long h = 0; h < o.n; h++) attend(b.heads[h], b.attended.row(0) + h * o.d, b.attended.stride, h, r);
    std::copy_n(b.x.row(0), o.s * b.x.stride, b.middle.row(0));
    b.out.forward(o.s, b.attended, b.middle, true);
    b.norm2.forward(o.s, b.middle, y);
    b.up.forward(o.s, y, b.gate_up);
    for (long i = 0; i < o.s; i++)
      for (long j = 0; j < f; j += LANES) {
        const Vec gate = at(b.gate_up.row(i) + j);
        at(b.gated.row(i) + j) = gate / (1.f + exponential(-gate)) * at(b.gate_up.row(i) + f + j);
      }
    std::copy_n(b.middle.row(0), o.s * next.stride, next.row(0));
    b.down.forward(o.s, b.gated, next, true);
  }

  void attend(Head& a, float* into, long stride, long h, const Row& r) {
    const long half = o.d / 2;
    for (long i = 0; i < o.s; i++) {
      const float *z = qkv.row(i) + h * 3 * o.d, *cos = r.cos + i * half, *sin = r.sin + i * half;
      for (long j = 0; j < half; j++) {
        a.q.row(i)[j] = (z[j] * cos[j] - z[j + half] * sin[j]) * o.score;
        a.q.row(i)[j + half] = (z[j + half] * cos[j] + z[j] * sin[j]) * o.score;
        a.k.row(i)[j] = a.k_across.row(j)[i] = z[o.d + j] * cos[j] - z[o.d + j + half] * sin[j];
        a.k.row(i)[j + half] = a.k_across.row(j + half)[i] = z[o.d + j + half] * cos[j] + z[o.d + j] * sin[j];
      }
      for (long j = 0; j < o.d; j++) a.v.row(i)[j] = a.v_across.row(j)[i] = z[2 * o.d + j];
    }
    for (long i0 = 0; i0 < o.s; i0 += ATTENDED) {
      const long i1 = std::min(i0 + ATTENDED, o.s), seen = o.causal ? i1 : o.s;
      float* p = a.chance.row(i0);
      product(i1 - i0, seen, o.d, a.q.row(i0), a.q.stride, 1, a.k_across.row(0), a.k_across.stride, p, a.chance.stride, false);
      for (long i = i0; i < i1; i++, p += a.chance.stride) {
        const long m = o.causal ? i + 1 : o.s;
        fill(p, m, padded(m), -INFINITY), fill(p, padded(m), padded(seen), 0);
        const float factor = 1 / exponentials(p, m, largest(p, m));
        for (long j = 0; j < m; j += LANES) at(p + j) *= all(factor);
      }
      product(i1 - i0, o.d, seen, a.chance.row(i0), a.chance.stride, 1, a.v.row(0), a.v.stride, into + i0 * stride, stride, false);
    }
  }

  // dx becomes the gradient of the block's input from that of its output; y and dy are scratch.
  void backward(Block& b, const Row& r) {
    b.down.backward(o.s, b.gated, dx, d_gated);
    for (long i = 0; i < o.s; i++)
      for (long j = 0; j < f; j += LANES) {
        const Vec gate = at(b.gate_up.row(i) + j), up = at(b.gate_up.row(i) + f + j), d = at(d_gated.row(i) + j);
        const Vec open = 1.f / (1.f + exponential(-gate));
        at(d_gate_up.row(i) + f + j) = d * gate * open;
        at(d_gate_up.row(i) + j) = d * up * open * (1.f + gate * (1.f - open));
      }
    b.norm2.again(o.s, y);
    b.up.backward(o.s, y, d_gate_up, dy);
    b.norm2.backward(o.s, dy, dx);
    b.out.backward(o.s, b.attended, dx, d_attended);
    for (long h = 0; h < o.n; h++) attend_back(b.heads[h], d_attended.row(0) + h * o.d, d_attended.stride, h, r);
    b.norm1.again(o.s, y);
    b.qkv.backward(o.s, y, d_qkv, dy);
    b.norm1.backward(o.s, dy, dx);
  }

  void attend_back(Head& a, const float* d, long stride, long h, const Row& r) {
    for (long i0 = 0; i0 < o.s; i0 += ATTENDED) {
      const long i1 = std::min(i0 + ATTENDED, o.s), seen = o.causal ? i1 : o.s, whole = padded(seen);
      product(i1 - i0, seen, o.d, d + i0 * stride, stride, 1, a.v_across.row(0), a.v_across.stride, d_chance.row(i0),
              d_chance.stride, false);
      for (long i = i0; i < i1; i++) {
        float *p = a.chance.row(i), *z = d_chance.row(i);
        Vec along{};
        for (long j = 0; j < whole; j += LANES) along += at(p + j) * at(z + j);
        const float mean = sum(along);
        for (long j = 0; j < whole; j += LANES) at(z + j) = at(p + j) * (at(z + j) - mean);
      }
      product(i1 - i0, o.d, seen, d_chance.row(i0), d_chance.stride, 1, a.k.row(0), a.k.stride, d_q.row(i0), d_q.stride, false);
    }
    for (long j0 = 0; j0 < o.s; j0 += ATTENDED) {
      const long from = o.causal ? j0 : 0, count = std::min(ATTENDED, o.s - j0);
      product(count, o.d, o.s - from, d_chance.row(from) + j0, 1, d_chance.stride, a.q.row(from), a.q.stride, d_k.row(j0),
              d_k.stride, false);
      product(count, o.d, o.s - from, a.chance.row(from) + j0, 1, a.chance.stride, d + from * stride, stride, d_v.row(j0),
              d_v.stride, false);
    }
    const long half = o.d / 2;
    for (long i = 0; i < o.s; i++) {
      float* z = d_qkv.row(i) + h * 3 * o.d;
      const float *cos = r.cos + i * half, *sin = r.sin + i * half, *q = d_q.row(i), *k = d_k.row(i);
      for (long j = 0; j < half; j++) {
        z[j] = (q[j] * cos[j] + q[j + half] * sin[j]) * o.score;
        z[j + half] = (q[j + half] * cos[j] - q[j] * sin[j]) * o.score;
        z[o.d + j] = k[j] * cos[j] + k[j + half] * sin[j];
        z[o.d + j + half] = k[j + half] * cos[j] - k[j] * sin[j];
      }
      std::copy_n(d_v.row(i), o.d, z + 2 * o.d);
    }
  }
};
