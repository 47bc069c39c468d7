// Rows of a block of logits: `rules/lower_head.egg` says what is computed.  A block of threads takes a row.

// The largest logit m, but not below -1e30; of s = z - m, but not below -1e4, the sums of e^s and of s e^s.
extern "C" __global__ void logit_sums(const T* z, float* to, Size width) {
    const T* row = z + blockIdx.x * width;
    // Rows of odd widths begin anywhere.
    bool whole = width % PACK == 0;
    // Each thread keeps sums below its own maximum, so that logits are read once.
    float m = -1e30f, n = 0.0f, a = 0.0f;
    for (Size start = (Size)threadIdx.x * PACK; start < width; start += (Size)blockDim.x * PACK) {
        float x[PACK], top = m;
        Size left = width - start;
        read(row + start, left, whole, x);
        for (int k = 0; k < PACK; ++k)
            if (k < left) top = fmaxf(top, x[k]);
        float down = m - top, keep = __expf(down);
        a = keep * (a + down * n);
        n *= keep;
        m = top;
        for (int k = 0; k < PACK; ++k) {
            if (k >= left) continue;
            float s = x[k] - m;
            // What is not a number stays so, which fmaxf would hide.
            s = s < -1e4f ? -1e4f : s;
            float e = __expf(s);
            n += e;
            a += e * s;
        }
    }
    float top = largest(m), down = fmaxf(m - top, -1e4f), keep = __expf(down);
    a = total(keep * (a + down * n));
    n = total(keep * n);
    if (threadIdx.x == 0) {
        to[blockIdx.x * 3] = top;
        to[blockIdx.x * 3 + 1] = n;
        to[blockIdx.x * 3 + 2] = a;
    }
}

// e^(z - m), of the sums of the row
extern "C" __global__ void logit_exp(const T* z, const float* sums, T* to, Size width) {
    bool whole = width % PACK == 0;
    float m = sums[blockIdx.x * 3];
    for (Size start = (Size)threadIdx.x * PACK; start < width; start += (Size)blockDim.x * PACK) {
        float x[PACK];
        read(z + blockIdx.x * width + start, width - start, whole, x);
        for (int k = 0; k < PACK; ++k) x[k] = __expf(x[k] - m);
        write(to + blockIdx.x * width + start, width - start, whole, x);
    }
}

// g (e^(z - l) - 1 at the row's own token)
extern "C" __global__ void logit_grad(
    const T* z, const float* g, const Size* ids, const float* lse, const Size* columns, T* to, Size width) {
    bool whole = width % PACK == 0;
    float scale = g[blockIdx.x], l = lse[blockIdx.x];
    Size own = ids[blockIdx.x];
    for (Size start = (Size)threadIdx.x * PACK; start < width; start += (Size)blockDim.x * PACK) {
        float x[PACK];
        read(z + blockIdx.x * width + start, width - start, whole, x);
        for (int k = 0; k < PACK; ++k)
            if (start + k < width) x[k] = scale * (__expf(x[k] - l) - (columns[start + k] == own ? 1.0f : 0.0f));
        write(to + blockIdx.x * width + start, width - start, whole, x);
    }
}

// The sums of two blocks together; a thread takes a row.
extern "C" __global__ void merge_sums(const float* x, const float* y, float* to, Size rows) {
    Size row = (Size)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    x += row * 3, y += row * 3, to += row * 3;
    float m = fmaxf(x[0], y[0]), s = x[0] - m, r = y[0] - m, es = expf(s), er = expf(r);
    to[0] = m;
    to[1] = es * x[1] + er * y[1];
    to[2] = es * (x[2] + s * x[1]) + er * (y[2] + r * y[1]);
}

// log sum e^z | the expected row of the weight, of a block
extern "C" __global__ void block_expect(const float* sums, const T* rows, float* to, Size width) {
    const float* own = sums + blockIdx.x * 3;
    to += blockIdx.x * (width + 1);
    float r = 1.0f / fmaxf(own[1], 1e-30f);
    if (threadIdx.x == 0) to[0] = own[0] + logf(own[1]);
    for (Size k = threadIdx.x; k < width; k += blockDim.x) to[1 + k] = get(rows[blockIdx.x * width + k]) * r;
}

// ... of two blocks together
extern "C" __global__ void merge_expect(const float* x, const float* y, float* to, Size width) {
    x += blockIdx.x * width, y += blockIdx.x * width, to += blockIdx.x * width;
    float m = fmaxf(x[0], y[0]), l = m + logf(expf(x[0] - m) + expf(y[0] - m));
    float ex = expf(x[0] - l), ey = expf(y[0] - l);
    if (threadIdx.x == 0) to[0] = l;
    for (Size k = 1 + threadIdx.x; k < width; k += blockDim.x) to[k] = ex * x[k] + ey * y[k];
}
