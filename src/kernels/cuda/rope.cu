// Rotary positions: `rules/lower.egg` says what is computed.  A thread rotates PACK pairs (x_k, x_(k + half)).

struct Table {
    const T* at;
    Strides strides;
};

template <typename F>
__device__ inline void rotate(const T* x, Table cos, Table sin, T* y, Size n, Size half, const Axes& axes, F of) {
    // Halves of odd packs are read one by one.
    bool whole = half % PACK == 0;
    Size packs = (half + PACK - 1) / PACK;
    Size index = (Size)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= n * packs) return;
    Size row = index / packs, start = index % packs * PACK, left = half - start;
    const T* a = x + row * 2 * half + start;
    T* to = y + row * 2 * half + start;
    const T* c = cos.at + offset(row, axes, cos.strides) + start;
    const T* s = sin.at + offset(row, axes, sin.strides) + start;
    float x1[PACK], x2[PACK], c1[PACK], c2[PACK], s1[PACK], s2[PACK];
    read(a, left, whole, x1);
    read(a + half, left, whole, x2);
    read(c, left, whole, c1);
    read(c + half, left, whole, c2);
    read(s, left, whole, s1);
    read(s + half, left, whole, s2);
#pragma unroll
    for (int k = 0; k < PACK; ++k) of(x1[k], x2[k], c1[k], c2[k], s1[k], s2[k]);
    write(to, left, whole, x1);
    write(to + half, left, whole, x2);
}

// x cos + rotate_half(x) sin
extern "C" __global__ void rope(
    const T* x, const T* cos, const T* sin, T* y, Size n, Size half, Axes axes, Strides sc, Strides ss) {
    rotate(x, {cos, sc}, {sin, ss}, y, n, half, axes, [](float& a, float& b, float c1, float c2, float s1, float s2) {
        float first = a * c1 - b * s1, second = b * c2 + a * s2;
        a = first, b = second;
    });
}

// dy cos - rotate_half(dy sin)
extern "C" __global__ void rope_grad(
    const T* dy, const T* cos, const T* sin, T* dx, Size n, Size half, Axes axes, Strides sc, Strides ss) {
    rotate(dy, {cos, sc}, {sin, ss}, dx, n, half, axes, [](float& a, float& b, float c1, float c2, float s1, float s2) {
        float first = a * c1 + b * s2, second = b * c2 - a * s1;
        a = first, b = second;
    });
}
