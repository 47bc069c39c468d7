// AdamW's update of one parameter in f32; `rules/lower.egg` says what is computed, in this order of operations.
// A result may lie where its operand does.

extern "C" __global__ void adamw(
    const float* p, const float* g, const float* m, const float* v, float* p2, float* m2, float* v2, Size n, float scale,
    float beta1, float beta2, float rest1, float rest2, float unbias1, float unbias2, float keep, float lr, float eps) {
    for (Size k = (Size)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += (Size)gridDim.x * blockDim.x) {
        float d = g[k] * scale;
        float first = m[k] * beta1 + d * rest1, second = v[k] * beta2 + d * d * rest2;
        float step = first / unbias1 / (sqrtf(second / unbias2) + eps);
        p2[k] = p[k] * keep - lr * step;
        m2[k] = first;
        v2[k] = second;
    }
}
