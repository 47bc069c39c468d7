// Weights in 4 or 8 bits: (code - middle) scale, a scale for each block of codes.

template <int BYTES> struct alignas(BYTES) Codes { unsigned char at[BYTES]; };

// A thread computes PACK elements: of one block where blocks are made of packs.
template <int BITS>
__device__ inline void decode(const unsigned char* q, const T* s, T* y, Size n, Size block) {
    constexpr int MIDDLE = 1 << (BITS - 1), BYTES = PACK * BITS / 8;
    Size start = ((Size)blockIdx.x * blockDim.x + threadIdx.x) * PACK;
    Size left = n - start;
    if (left <= 0) return;
    bool whole = block % PACK == 0;
    float out[PACK];
    if (whole) {
        Codes<BYTES> codes = *(const Codes<BYTES>*)(q + start * BITS / 8);
        float scale = get(s[start / block]);
#pragma unroll
        for (int k = 0; k < PACK; ++k) {
            int code = BITS == 8 ? codes.at[k] : codes.at[k / 2] >> (k % 2 * 4) & 15;
            out[k] = (float)(code - MIDDLE) * scale;
        }
    } else {
#pragma unroll 1
        for (int k = 0; k < PACK && k < left; ++k) {
            Size at = start + k;
            int code = BITS == 8 ? q[at] : q[at / 2] >> (at % 2 * 4) & 15;
            out[k] = (float)(code - MIDDLE) * get(s[at / block]);
        }
    }
    write(y + start, left, whole, out);
}

extern "C" __global__ void decode_4(const unsigned char* q, const T* s, T* y, Size n, Size block) {
    decode<4>(q, s, y, n, block);
}
extern "C" __global__ void decode_8(const unsigned char* q, const T* s, T* y, Size n, Size block) {
    decode<8>(q, s, y, n, block);
}
