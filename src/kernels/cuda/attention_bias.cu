// Scaled dot-product attention with an additive bias for 16-bit inputs: y = softmax(scale q k^T + bias) v.
// Follows attention.cuh, which has the instructions and the tiles.
//
// q [B, Lq, H, D], k [B, Lk, Hk, D], v [B, Lk, Hk, DV] and y [B, Lq, H, DV], contiguous; head h of q reads
// head h / (H / Hk) of k and v. bias has four strides in elements, 0 where it is broadcast. A row whose
// scores are all -inf becomes 0. Keys whose bias is -inf for all rows at hand are skipped, a chunk at a time by
// a warp and a tile at a time by a block. Results do not vary between runs.
//
// Launch, in dimension x alone: up(Lq / ROWS) * H * B blocks (up rounds the quotient up) of 256 threads,
// where, with d = up16(D) and v = up16(DV), ROWS = d + 2 v <= 192 ? 256 : 128.
// Dynamic shared memory in bytes: 256 * (d + v + 16), 68 KB at most.
// None of B, Lq, Lk, H may be 0. Strides between neighbouring rows of one head (H*D, Hk*DV, ...) must be
// below 2^32 elements.
//
// Macros: D, DV (multiples of 8, 8..128); BF16 or F16.

// Sixteen-row groups per warp. Two groups halve the shared-memory reads per product, where their operands
// and sums fit the registers.
constexpr int GROUPS = DP + 2 * VP <= 192 ? 2 : 1;
constexpr int ROWS = 128 * GROUPS;            // of a block's eight warps
constexpr int CHUNK = GROUPS == 1 ? 64 : 32;  // keys whose scores are in registers at one time
constexpr int AHEAD = 8;                      // at most so many results of ldmatrix are loaded before their use

// Two neighbouring values of the bias, as stored.
#ifdef BF16
constexpr u32 MINUS_INF = 0xff80u;
#else
constexpr u32 MINUS_INF = 0xfc00u;
#endif
struct BiasPair {
    u32 bits;
    __device__ __forceinline__ void load(const half_t* p) { bits = *(const u32*)p; }
    __device__ __forceinline__ void set(u32 low, u32 high) { bits = low | high << 16; }
    __device__ __forceinline__ u32 differs() const { return bits ^ (MINUS_INF | MINUS_INF << 16); }  // from -inf
    __device__ __forceinline__ float value(int i) const { return bias_float((half_t)(bits >> 16 * i)); }
};

// Scores stay in natural units: in units of log 2 the lowest finite values of a bias would become -inf.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_bias(const half_t* __restrict__ q, const half_t* __restrict__ k, const half_t* __restrict__ v,
               half_t* __restrict__ y, const half_t* __restrict__ bias, i64 B, i64 Lq, i64 Lk, i64 H, i64 Hk,
               i64 bias_batch, i64 bias_head, i64 bias_query, i64 bias_key, float scale) {
    constexpr int G = GROUPS, N = CHUNK / 16, SCORES = KD * N, PIECES = SCORES + KV * N;
    constexpr int A = ahead(PIECES, AHEAD);
    const u32 k_tiles = shared_address(memory), v_tiles = k_tiles + 2 * TILE * PITCH_D * 2;  // two stages each
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int blocks = (int)((Lq + ROWS - 1) / ROWS);
    const i64 head_index = blockIdx.x / blocks, batch = head_index / H, head = head_index % H;
    const i64 row0 = (i64)(blockIdx.x % blocks) * ROWS + warp * 16 * G;
    const i64 head_k = head / (H / Hk), stride_k = Hk * D, stride_v = Hk * DV;
    q += (batch * Lq * H + head) * D;
    y += (batch * Lq * H + head) * DV;
    k += (batch * Lk * Hk + head_k) * D;
    v += (batch * Lk * Hk + head_k) * DV;
    bias += batch * bias_batch + head * bias_head;
    auto copy_keys = [&](int stage, i64 key0) __attribute__((always_inline)) {
        const int rows = at_most_tile(Lk - key0);
        copy_rows<D, TILE>(k_tiles + stage * TILE * PITCH_D * 2, k + key0 * stride_k, stride_k, 0, rows);
        copy_rows<DV, TILE>(v_tiles + stage * TILE * PITCH_V * 2, v + key0 * stride_v, stride_v, 0, rows);
    };
    copy_keys(0, 0);

    // The bias of one chunk, loaded while the chunk before it is worked on. Keys past Lk have -inf, which
    // makes their weights 0; rows past Lq have the bias of the last row, and are not stored.
    BiasPair b[G][2 * N][2];
    const half_t* bias_rows[G][2];
    const bool pairs = bias_key == 1 && bias_query % 2 == 0 && (u64)bias % (2 * sizeof(half_t)) == 0;
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const i64 row = row0 + g * 16 + lane / 4 + r * 8;
            bias_rows[g][r] = bias + (row < Lq ? row : Lq - 1) * bias_query + lane % 4 * 2 * bias_key;
        }
    auto load_bias = [&](i64 key0) __attribute__((always_inline)) {
        if (pairs && key0 + CHUNK <= Lk) {
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int n = 0; n < 2 * N; n++)
#pragma unroll
                    for (int r = 0; r < 2; r++) b[g][n][r].load(bias_rows[g][r] + key0 + n * 8);
        } else if (key0 < Lk) {
            const i64 present = Lk - key0 - lane % 4 * 2;  // columns from this thread's first on
#pragma unroll
            for (int n = 0; n < 2 * N; n++) {
                const i64 at = (key0 + n * 8) * bias_key;
#pragma unroll
                for (int g = 0; g < G; g++)
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        b[g][n][r].set(n * 8 < present ? bias_rows[g][r][at] : MINUS_INF,
                                       n * 8 + 1 < present ? bias_rows[g][r][at + bias_key] : MINUS_INF);
            }
        }
    };
    auto bias_differs = [&]() __attribute__((always_inline)) {  // from -inf, anywhere in this thread's part
        u32 differs = 0;
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int n = 0; n < 2 * N; n++) differs |= b[g][n][0].differs() | b[g][n][1].differs();
        return differs != 0;
    };
    load_bias(0);

    u32 q_rows[G][KD][4];
    float y_rows[G][2 * KV][4], top[G][2], sum[G][2];  // sum: of the columns of this thread alone
    clear(y_rows);
#pragma unroll
    for (int g = 0; g < G; g++) {
        load_rows<D>(q_rows[g], q, H * D, row0 + g * 16, Lq);
        // From a finite maximum, scores of -inf weigh 0 with no inf - inf.
#pragma unroll
        for (int r = 0; r < 2; r++) top[g][r] = LOWEST, sum[g][r] = 0.0f;
    }

    const Lane stored = lane_stored(), transposed = lane_transposed();
    u32 f[A][4];
    u32 here = 0, next = CHUNK % (2 * TILE);  // rows of this chunk and of the next in the two stages of the tiles
    auto load = [&](int i) __attribute__((always_inline)) {
        u32 row = i < PIECES ? here : next;
        i %= PIECES;
        if (i < SCORES)
            load_matrix(f[i % A], piece_address<D>(k_tiles, stored, row + i % N * 16, i / N));
        else
            load_matrix_transposed(f[i % A], piece_address<DV>(v_tiles, transposed, row + (i - SCORES) / KV * 16,
                                                               (i - SCORES) % KV));
    };
    wait_copies();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < A; i++) load(i);

    // Between packed samples the bias is -inf, and nothing is added.
    bool used = false;  // this warp needed some chunk of this tile
    bool idle = false;  // no warp needed the tile before this one
#pragma unroll 1
    for (i64 key0 = 0; key0 < Lk; key0 += CHUNK) {
        if (idle) {
            // More such tiles are likely: the block looks for the next one that it needs before it copies any.
            const i64 copied = key0;
            bool needed = __syncthreads_or(bias_differs());
#pragma unroll 1
            while (!needed && (key0 += CHUNK) < Lk) {
                load_bias(key0);
                needed = __syncthreads_or(bias_differs());
            }
            if (!needed) break;
            if (CHUNK < TILE && key0 % TILE != 0) load_bias(key0 -= key0 % TILE);
            if (key0 != copied) {
                copy_keys(here / TILE, key0);
                wait_copies();
                __syncthreads();
#pragma unroll
                for (int i = 0; i < A; i++) load(i);
            }
            idle = false;
        }
        const int in_tile = here % TILE;
        const i64 next_tile = key0 - in_tile + TILE;
        next = (here + CHUNK) % (2 * TILE);
        if (in_tile == 0 && next_tile < Lk) copy_keys(here < TILE, next_tile);
        // Where the next chunk is in another tile, that tile must be complete before its first piece is
        // loaded; past the barrier no warp reads this tile again, so it can be overwritten.
        auto finish = [&](int pieces_left) __attribute__((always_inline)) {
            if (pieces_left == A && in_tile + CHUNK == TILE) {
                wait_copies();
                idle = !__syncthreads_or(used);
                used = false;
            }
        };
        const bool present = __any_sync(~0u, bias_differs());
        used |= present;
        float s[G][2 * N][4];
        if (present) {
            clear(s);
#pragma unroll
            for (int i = 0; i < SCORES; i++) {
                multiply(s, i % N, q_rows, i / N, f[i % A]);
                finish(PIECES - i);
                load(i + A);
            }
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int n = 0; n < 2 * N; n++)
#pragma unroll
                    for (int r = 0; r < 4; r++) s[g][n][r] = s[g][n][r] * scale + b[g][n][r / 2].value(r % 2);
        }
        load_bias(key0 + CHUNK);
        if (present) {
            float shrink[G][2];
            bool grown = false;
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float greatest = top[g][r];
#pragma unroll
                    for (int n = 0; n < 2 * N; n++)
                        greatest = fmaxf(greatest, fmaxf(s[g][n][2 * r], s[g][n][2 * r + 1]));
                    // The four lanes of a row have its columns between them.
                    greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 1));
                    greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, 2));
                    grown |= greatest > top[g][r];
                    shrink[g][r] = exp2_fast((top[g][r] - greatest) * LOG2E);
                    top[g][r] = greatest;
                    float part = 0.0f;
#pragma unroll
                    for (int n = 0; n < 2 * N; n++)
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; e++)
                            part += s[g][n][e] = exp2_fast((s[g][n][e] - greatest) * LOG2E);
                    sum[g][r] = sum[g][r] * shrink[g][r] + part;
                }
            if (__any_sync(~0u, grown)) {  // else every factor is 1
#pragma unroll
                for (int g = 0; g < G; g++)
#pragma unroll
                    for (int n = 0; n < 2 * KV; n++)
#pragma unroll
                        for (int r = 0; r < 4; r++) y_rows[g][n][r] *= shrink[g][r / 2];
            }
            u32 p[G][N][4];
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int n = 0; n < 2 * N; n++) {
                    // Two neighbouring 8-column accumulators are one 16-column A operand.
                    p[g][n / 2][n % 2 * 2] = pack(s[g][n][0], s[g][n][1]);
                    p[g][n / 2][n % 2 * 2 + 1] = pack(s[g][n][2], s[g][n][3]);
                }
#pragma unroll
            for (int i = SCORES; i < PIECES; i++) {
                multiply(y_rows, (i - SCORES) % KV, p, (i - SCORES) / KV, f[i % A]);
                finish(PIECES - i);
                load(i + A);
            }
        } else {
            finish(A);
#pragma unroll
            for (int i = PIECES; i < PIECES + A; i++) load(i);
        }
        here = next;
    }

#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float total = sum[g][r];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float factor = total == 0.0f ? 0.0f : 1.0f / total;  // 0: every score is -inf
#pragma unroll
            for (int n = 0; n < 2 * KV; n++) y_rows[g][n][2 * r] *= factor, y_rows[g][n][2 * r + 1] *= factor;
        }
        store_rows<DV>(y, H * DV, row0 + g * 16, Lq, y_rows[g], 1.0f);
    }
}
