// What all kernels start with.  They are compiled when a session needs them, for its GPU and one element type T, without
// any header; sums are f32.

typedef long long Size;

#if defined(BF16)
struct T { unsigned short bits; };
__device__ inline float get(T x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline T put(float x) { T y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
#elif defined(F16)
struct T { unsigned short bits; };
__device__ inline float get(T x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ inline T put(float x) { T y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
#else
typedef float T;
__device__ inline float get(T x) { return x; }
__device__ inline T put(float x) { return x; }
#endif

// How many elements a thread reads at a time: 16 bytes.
constexpr int PACK = 16 / sizeof(T);
struct alignas(16) Pack { T at[PACK]; };

// PACK elements from x on, `left` of which there are; the rest 0.  `whole` says that packs are aligned and complete.
__device__ inline void read(const T* x, Size left, bool whole, float* to) {
    if (whole) {
        Pack pack = *(const Pack*)x;
#pragma unroll
        for (int k = 0; k < PACK; ++k) to[k] = get(pack.at[k]);
    } else {
#pragma unroll
        for (int k = 0; k < PACK; ++k) to[k] = k < left ? get(x[k]) : 0.0f;
    }
}

__device__ inline void write(T* y, Size left, bool whole, const float* from) {
    if (whole) {
        Pack pack;
#pragma unroll
        for (int k = 0; k < PACK; ++k) pack.at[k] = put(from[k]);
        *(Pack*)y = pack;
    } else {
#pragma unroll
        for (int k = 0; k < PACK; ++k)
            if (k < left) y[k] = put(from[k]);
    }
}

// Up to six axes of a result, outermost first, how many elements they have, and where an operand's lie along them: 0 where
// they are repeated.
constexpr int AXES = 6;
struct Axes { Size size[AXES], total; };
struct Strides { Size along[AXES]; };

template <typename Int>
__device__ inline Size offset_of(Int index, const Axes& axes, const Strides& strides) {
    Size at = 0;
    for (int k = AXES - 1; k >= 0 && index > 0; --k) {
        Int size = (Int)axes.size[k];
        if (size == 1) continue;
        at += index % size * strides.along[k];
        index /= size;
    }
    return at;
}
// A division of 64 bits takes four times one of 32.
__device__ inline Size offset(Size index, const Axes& axes, const Strides& strides) {
    return axes.total >> 31 ? offset_of<Size>(index, axes, strides) : offset_of<unsigned>(index, axes, strides);
}

// The sum (or the largest) over a block of at most 1024 threads, given to all of them.
template <typename Join>
__device__ inline float joined(float x, float none, Join join) {
    __shared__ float parts[32];
    for (int step = 16; step > 0; step /= 2) x = join(x, __shfl_xor_sync(~0u, x, step));
    // The block may still read the parts of the call before.
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : none;
    for (int step = 16; step > 0; step /= 2) x = join(x, __shfl_xor_sync(~0u, x, step));
    return x;
}
__device__ inline float total(float x) {
    return joined(x, 0.0f, [](float a, float b) { return a + b; });
}
__device__ inline float largest(float x) {
    return joined(x, -__int_as_float(0x7f800000), [](float a, float b) { return fmaxf(a, b); });
}
