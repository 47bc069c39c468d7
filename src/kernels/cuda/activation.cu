// Functions of single elements: `rules/lower.egg` under the operators' names says what each computes.

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }
__device__ inline float silu_slope(float x) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}
__device__ inline float normal(float x) { return 0.5f * (1.0f + erff(x * 0.7071067811865476f)); }
__device__ inline float normal_slope(float x) { return normal(x) + x * 0.3989422804014327f * expf(-0.5f * x * x); }
__device__ inline float bend(float x) { return tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)); }
__device__ inline float bend_slope(float x) {
    float h = bend(x);
    return 0.5f * (1.0f + h) + x * (1.0f - h * h) * 0.3989422804014327f * (1.0f + 0.134145f * x * x);
}

template <int N> struct Operands {
    const T* at[N];
    Strides strides[N];
};

// A thread computes PACK elements.  Operands of the result's shape are one stretch of memory (`flat`); others are looked up.
template <int N, typename F>
__device__ inline void elementwise(const Operands<N>& from, T* y, Size n, int flat, const Axes& axes, F of) {
    Size start = ((Size)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    Size left = n - start;
    if (left <= 0) return;
    bool whole = left >= PACK;
    if (!flat) {
#pragma unroll 1
        for (int k = 0; k < PACK && k < left; ++k) {
            float x[N];
            for (int j = 0; j < N; ++j) x[j] = get(from.at[j][offset(start + k, axes, from.strides[j])]);
            y[start + k] = put(of(x));
        }
        return;
    }
    float in[N][PACK], out[PACK];
#pragma unroll
    for (int j = 0; j < N; ++j) read(from.at[j] + start, left, whole, in[j]);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
        float x[N];
        for (int j = 0; j < N; ++j) x[j] = in[j][k];
        out[k] = of(x);
    }
    write(y + start, left, whole, out);
}

#define OF_ONE(name, expression)                                                                            \
    extern "C" __global__ void name(const T* a, T* y, Size n, int flat, Axes axes, Strides sa) {            \
        elementwise<1>({{a}, {sa}}, y, n, flat, axes, [](const float* x) { return expression; });           \
    }
#define OF_TWO(name, expression)                                                                            \
    extern "C" __global__ void name(                                                                        \
        const T* a, const T* b, T* y, Size n, int flat, Axes axes, Strides sa, Strides sb) {                \
        elementwise<2>({{a, b}, {sa, sb}}, y, n, flat, axes, [](const float* x) { return expression; });    \
    }
#define OF_THREE(name, expression)                                                                          \
    extern "C" __global__ void name(                                                                        \
        const T* a, const T* b, const T* c, T* y, Size n, int flat, Axes axes, Strides sa, Strides sb, Strides sc) { \
        elementwise<3>({{a, b, c}, {sa, sb, sc}}, y, n, flat, axes, [](const float* x) { return expression; });      \
    }

OF_ONE(silu, x[0] * sigmoid(x[0]))
OF_TWO(silu_grad, x[1] * silu_slope(x[0]))
OF_TWO(swiglu, x[0] * sigmoid(x[0]) * x[1])
OF_THREE(swiglu_grad, x[0] * x[2] * silu_slope(x[1]))
OF_TWO(swiglu_grad_u, x[0] * x[1] * sigmoid(x[1]))
OF_ONE(gelu, x[0] * normal(x[0]))
OF_TWO(gelu_grad, x[1] * normal_slope(x[0]))
OF_ONE(gelu_tanh, 0.5f * x[0] * (1.0f + bend(x[0])))
OF_TWO(gelu_tanh_grad, x[1] * bend_slope(x[0]))
