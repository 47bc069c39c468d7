// What attention_bias.cu and attention_grad.cu share: this text stands in front of each.
//
// Macros: D, DV (multiples of 8, 8..128); BF16 or F16.

typedef unsigned short half_t;  // storage of one bf16 or f16 value
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define PAD16(n) (((n) + 15) / 16 * 16)
// A row of 32m + 16 bytes puts eight consecutive rows in eight different 16-byte groups of banks, so that
// ldmatrix has no bank conflicts, and makes every offset in a tile a compile-time constant.
#define PITCH(width) (PAD16(width) + 8)
constexpr int DP = PAD16(D), VP = PAD16(DV);  // head sizes as the matrix instructions see them
constexpr int KD = DP / 16, KV = VP / 16;     // 16-wide steps over a head
constexpr int PITCH_D = PITCH(D), PITCH_V = PITCH(DV);

constexpr int THREADS = 256;  // with up to 255 registers each, they fill a multiprocessor
constexpr int TILE = 64;      // keys (or queries) in a shared-memory tile

constexpr float LOG2E = 1.4426950408889634f;
#define INF __int_as_float(0x7f800000)
#define LOWEST -3.402823466e38f

#ifdef BF16
#define FORMAT "bf16"
#else
#define FORMAT "f16"
#endif

// ---- instructions ------------------------------------------------------------------------------

__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FORMAT "." FORMAT ".f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void load_matrix(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_matrix_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
// Copies 16 bytes (or 4) to shared memory in the background; writes zeros where `valid` is false.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn." FORMAT "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float log2_fast(float x) {
    float r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// ---- bias --------------------------------------------------------------------------------------

__device__ __forceinline__ float bias_float(half_t b) {
#ifdef BF16
    return __uint_as_float((u32)b << 16);
#else
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(b));
    return r;
#endif
}

extern __shared__ __align__(128) unsigned char memory[];

// ---- tiles and fragments -----------------------------------------------------------------------

// Starts the copy of rows first .. first + ROWS of a tile to shared memory, `to` and `from` being those
// of row 0; rows from `rows` on become zeros.
template <int WIDTH, int ROWS>
__device__ __forceinline__ void copy_rows(u32 to, const half_t* from, i64 stride, int first, int rows) {
    constexpr int PIECES = PAD16(WIDTH) / 8;
#pragma unroll
    for (int i = 0; i < ROWS * PIECES; i += THREADS) {
        int piece = i + threadIdx.x, row = first + piece / PIECES, column = piece % PIECES * 8;
        if (ROWS * PIECES % THREADS != 0 && piece >= ROWS * PIECES) break;
        bool valid = row < rows && (WIDTH % 16 == 0 || column < WIDTH);
        copy16(to + (row * PITCH(WIDTH) + column) * 2,
               from + (valid ? (i64)((u64)(u32)row * (u32)stride) + column : 0), valid);
    }
}
__device__ __forceinline__ int at_most_tile(i64 rows) { return rows < TILE ? (int)rows : TILE; }

// Loads the A operand (16 rows, all of WIDTH) of one warp from global memory, with zeros outside.
template <int WIDTH>
__device__ __forceinline__ void load_rows(u32 (&a)[PAD16(WIDTH) / 16][4], const half_t* base, i64 stride,
                                          i64 row0, i64 rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < PAD16(WIDTH) / 16; step++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            i64 row = row0 + lane / 4 + r % 2 * 8;
            int column = step * 16 + r / 2 * 8 + lane % 4 * 2;
            a[step][r] = row < rows && column < WIDTH ? *(const u32*)(base + row * stride + column) : 0;
        }
}

// Stores a 16-row accumulator times `factor`.
template <int WIDTH>
__device__ __forceinline__ void store_rows(half_t* base, i64 stride, i64 row0, i64 rows,
                                           const float (&c)[PAD16(WIDTH) / 8][4], float factor) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            i64 row = row0 + lane / 4 + r * 8;
            if (row < rows)
                *(u32*)(base + row * stride + n * 8 + lane % 4 * 2) =
                    pack(c[n][2 * r] * factor, c[n][2 * r + 1] * factor);
        }
}

// Pieces loaded ahead of their use: the loop carries them, so they must divide those of a chunk.
__device__ __forceinline__ constexpr int ahead(int pieces, int most) {
    while (pieces % most != 0) most--;
    return most;
}

// c[2n], c[2n + 1] += a b for one piece b, in every group of rows.
template <int GROUPS, int TILES, int STEPS>
__device__ __forceinline__ void multiply(float (&c)[GROUPS][TILES][4], int n, const u32 (&a)[GROUPS][STEPS][4],
                                         int step, const u32 (&b)[4]) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        mma(c[g][2 * n], a[g][step], b[0], b[1]);
        mma(c[g][2 * n + 1], a[g][step], b[2], b[3]);
    }
}

template <int GROUPS, int TILES>
__device__ __forceinline__ void clear(float (&c)[GROUPS][TILES][4]) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int r = 0; r < 4; r++) c[g][n][r] = 0.0f;
}

// This lane's place in a piece for ldmatrix: of a B operand as stored, and of a transposed one.
struct Lane { u32 row, column; };
__device__ __forceinline__ Lane lane_stored() {
    u32 lane = threadIdx.x % 32;
    return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
__device__ __forceinline__ Lane lane_transposed() {
    u32 lane = threadIdx.x % 32;
    return {lane % 16, lane / 16 * 8};
}
// Address of the piece at `row` and `step` of the tile at `tile`.
template <int WIDTH>
__device__ __forceinline__ u32 piece_address(u32 tile, Lane lane, u32 row, u32 step) {
    return tile + (lane.row + row) * PITCH(WIDTH) * 2 + lane.column * 2 + step * 32;
}
