// RMS and layer normalisation over the last axis, forward and backward: `rules/lower.egg` says what is computed.
// A block computes a row.  A scale or an offset of one row serves all, one of one element serves the row.

struct Row {
    const T* at;
    bool single;

    // The block's.  The last of `axes` has size 1; a stride of 0 along it says that rows have one element.
    __device__ Row(const T* x, const Strides& strides, const Axes& axes)
        : at(x + offset(blockIdx.x, axes, strides)), single(strides.along[AXES - 1] == 0) {}

    __device__ void pack(Size start, Size left, bool whole, float* to) const {
        if (single) {
            float x = get(*at);
#pragma unroll
            for (int k = 0; k < PACK; ++k) to[k] = k < left ? x : 0.0f;
        } else {
            read(at + start, left, whole, to);
        }
    }
};

// Calls `of` for each pack of a row of `width` elements: its start, how many are left, whether it is whole.
template <typename F>
__device__ inline void packs(Size width, F of) {
    bool aligned = width % PACK == 0;
    for (Size start = (Size)threadIdx.x * PACK; start < width; start += (Size)blockDim.x * PACK)
        of(start, width - start, aligned);
}

// 1 / rms of a row
__device__ inline float inverse(const Row& x, Size width, float eps) {
    float squares = 0.0f;
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK];
        x.pack(start, left, whole, a);
        for (int k = 0; k < PACK; ++k) squares += a[k] * a[k];
    });
    return rsqrtf(total(squares) / width + eps);
}

extern "C" __global__ void rms_norm(
    const T* x, const T* w, T* y, Size width, Axes axes, Strides sx, Strides sw, float eps) {
    Row x_row(x, sx, axes);
    Row w_row(w, sw, axes);
    T* to = y + blockIdx.x * width;
    float r = inverse(x_row, width, eps);
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK], b[PACK];
        x_row.pack(start, left, whole, a);
        w_row.pack(start, left, whole, b);
        for (int k = 0; k < PACK; ++k) a[k] *= r * b[k];
        write(to + start, left, whole, a);
    });
}

extern "C" __global__ void rms_norm_grad(
    const T* dy, const T* x, const T* w, T* dx, Size width, Axes axes, Strides sdy, Strides sx, Strides sw, float eps) {
    Row dy_row(dy, sdy, axes);
    Row x_row(x, sx, axes);
    Row w_row(w, sw, axes);
    T* to = dx + blockIdx.x * width;
    float squares = 0.0f, along = 0.0f;
    packs(width, [&](Size start, Size left, bool whole) {
        float g[PACK], a[PACK], b[PACK];
        dy_row.pack(start, left, whole, g);
        x_row.pack(start, left, whole, a);
        w_row.pack(start, left, whole, b);
        for (int k = 0; k < PACK; ++k) {
            squares += a[k] * a[k];
            along += g[k] * b[k] * a[k];
        }
    });
    float r = rsqrtf(total(squares) / width + eps);
    float m = total(along) * r / width;
    packs(width, [&](Size start, Size left, bool whole) {
        float g[PACK], a[PACK], b[PACK];
        dy_row.pack(start, left, whole, g);
        x_row.pack(start, left, whole, a);
        w_row.pack(start, left, whole, b);
        for (int k = 0; k < PACK; ++k) a[k] = (g[k] * b[k] - a[k] * r * m) * r;
        write(to + start, left, whole, a);
    });
}

extern "C" __global__ void rms_norm_grad_w(
    const T* dy, const T* x, T* dw, Size width, Axes axes, Strides sdy, Strides sx, float eps) {
    Row dy_row(dy, sdy, axes);
    Row x_row(x, sx, axes);
    T* to = dw + blockIdx.x * width;
    float r = inverse(x_row, width, eps);
    packs(width, [&](Size start, Size left, bool whole) {
        float g[PACK], a[PACK];
        dy_row.pack(start, left, whole, g);
        x_row.pack(start, left, whole, a);
        for (int k = 0; k < PACK; ++k) a[k] *= r * g[k];
        write(to + start, left, whole, a);
    });
}

// The sum of the rows of rms_norm_grad_w: 1 / rms of each row, sums over parts of the rows, and over the parts, in order.
extern "C" __global__ void rms_norm_rows(const T* x, float* inverse, Size width, float eps) {
    const T* row = x + blockIdx.x * width;
    float squares = 0.0f;
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK];
        read(row + start, left, whole, a);
        for (int k = 0; k < PACK; ++k) squares += a[k] * a[k];
    });
    squares = total(squares);
    if (threadIdx.x == 0) inverse[blockIdx.x] = rsqrtf(squares / width + eps);
}
extern "C" __global__ void rms_norm_grad_parts(
    const T* dy, const T* x, const float* inverse, float* parts, Size rows, Size width, Size part) {
    Size column = (Size)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    Size start = blockIdx.y * part, end = start + part < rows ? start + part : rows;
    float sum = 0.0f;
    for (Size row = start; row < end; ++row)
        sum += get(dy[row * width + column]) * get(x[row * width + column]) * inverse[row];
    parts[blockIdx.y * width + column] = sum;
}
extern "C" __global__ void sum_parts(const float* parts, T* to, Size n, Size width) {
    Size column = (Size)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (Size k = 0; k < n; ++k) sum += parts[k * width + column];
    to[column] = put(sum);
}

// The mean of a row, and 1 / its deviation; the mean goes first, so that nothing cancels.
__device__ inline void moments(const Row& x, Size width, float eps, float& mean, float& r) {
    float sum = 0.0f, squares = 0.0f;
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK];
        x.pack(start, left, whole, a);
        for (int k = 0; k < PACK; ++k) sum += a[k];
    });
    mean = total(sum) / width;
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK];
        x.pack(start, left, whole, a);
        for (int k = 0; k < PACK; ++k) squares += k < left ? (a[k] - mean) * (a[k] - mean) : 0.0f;
    });
    r = rsqrtf(total(squares) / width + eps);
}

extern "C" __global__ void normalize(const T* x, T* y, Size width, Axes axes, Strides sx, float eps) {
    Row x_row(x, sx, axes);
    T* to = y + blockIdx.x * width;
    float mean, r;
    moments(x_row, width, eps, mean, r);
    packs(width, [&](Size start, Size left, bool whole) {
        float a[PACK];
        x_row.pack(start, left, whole, a);
        for (int k = 0; k < PACK; ++k) a[k] = (a[k] - mean) * r;
        write(to + start, left, whole, a);
    });
}

extern "C" __global__ void layer_norm_grad(
    const T* dy, const T* x, const T* w, T* dx, Size width, Axes axes, Strides sdy, Strides sx, Strides sw, float eps) {
    Row dy_row(dy, sdy, axes);
    Row x_row(x, sx, axes);
    Row w_row(w, sw, axes);
    T* to = dx + blockIdx.x * width;
    float mean, r;
    moments(x_row, width, eps, mean, r);
    float sum = 0.0f, along = 0.0f;
    packs(width, [&](Size start, Size left, bool whole) {
        float g[PACK], a[PACK], b[PACK];
        dy_row.pack(start, left, whole, g);
        x_row.pack(start, left, whole, a);
        w_row.pack(start, left, whole, b);
        for (int k = 0; k < PACK; ++k) {
            sum += g[k] * b[k];
            along += g[k] * b[k] * (a[k] - mean) * r;
        }
    });
    float g_mean = total(sum) / width, m = total(along) / width;
    packs(width, [&](Size start, Size left, bool whole) {
        float g[PACK], a[PACK], b[PACK];
        dy_row.pack(start, left, whole, g);
        x_row.pack(start, left, whole, a);
        w_row.pack(start, left, whole, b);
        for (int k = 0; k < PACK; ++k) a[k] = (g[k] * b[k] - g_mean - (a[k] - mean) * r * m) * r;
        write(to + start, left, whole, a);
    });
}
