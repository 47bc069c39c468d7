// Gradient of scaled dot-product attention for 16-bit inputs: dq, dk and dv from q, k, v and dy.
// Follows attention.cuh, which has the instructions and the tiles.
//
//   s = scale q k^T (+ bias)   p = softmax(s)   y = p v
//   dp = dy v^T   delta_i = sum_j p_ij dp_ij   ds = p (dp - delta)
//   dq = scale ds k   dk = scale ds^T q   dv = p^T dy
//
// q [B, Lq, H, D], k [B, Lk, Hk, D], v [B, Lk, Hk, DV], dy [B, Lq, H, DV], contiguous; head h of q
// reads head h / (H / Hk) of k and v. Three kernels, launched in this order on one stream:
//   attention_grad_rows   log-sum-exp and delta of every query row
//   attention_grad_q      dq, a block for every ROWS_Q queries, looping over the keys
//   attention_grad_kv     dk and dv, a block for every ROWS_KV keys, looping over the queries
// No output of the forward pass is needed, no atomics are used, and results do not vary between runs.
//
// Launch, in dimension x alone (up rounds the quotient up), with blocks of 256 threads:
//   attention_grad_rows   up(Lq / ROWS_STATS) * H * B blocks
//   attention_grad_q      up(Lq / ROWS_Q) * H * B blocks
//   attention_grad_kv     up(Lk / ROWS_KV) * Hk * B blocks
// where, with d = up16(D) and v = up16(DV), ROWS_STATS = 256, ROWS_Q = 2 d + v <= 192 ? 256 : 128 and
// ROWS_KV = d + v <= 128 ? 256 : 128. None of B, Lq, Lk, H may be 0.
// Dynamic shared memory in bytes (69 KB at most):
//   attention_grad_rows, attention_grad_q   256 * (d + v + 16)
//   attention_grad_kv                       256 * (d + v + 16) + 1024 (1536 with BIAS)
// Scratch: lse holds B*H*Lq floats (2*B*H*Lq with BIAS), delta B*H*Lq floats.
// Strides between neighbouring rows of one head (H*D, Hk*DV, ...) must be below 2^32 elements.
//
// Macros: D, DV (multiples of 8, 8..128); BF16 or F16; BIAS where there is one.

// Sixteen-row groups per warp. Two groups halve the shared-memory reads per product, where their operands
// and sums fit the registers.
constexpr int GROUPS_STATS = 2, GROUPS_Q = 2 * DP + VP <= 192 ? 2 : 1, GROUPS_KV = DP + VP <= 128 ? 2 : 1;
// Keys (queries) whose scores are in registers at one time.
constexpr int CHUNK_STATS = 32, CHUNK_Q = GROUPS_Q == 1 ? 32 : 16, CHUNK_KV = 16;
// At most so many results of ldmatrix are loaded ahead of their use; for LEAD see piece().
constexpr int AHEAD_STATS = 8, AHEAD_Q = 8, AHEAD_KV = GROUPS_KV == 1 ? 8 : 4;
constexpr int LEAD_STATS = 4, LEAD_Q = 2, LEAD_KV = 0;
// Rows of a block's eight warps.
constexpr int ROWS_STATS = 128 * GROUPS_STATS, ROWS_Q = 128 * GROUPS_Q, ROWS_KV = 128 * GROUPS_KV;

// ---- bias --------------------------------------------------------------------------------------

#ifdef BIAS
#define BIAS_POINTER const half_t *__restrict__ bias,
#define BIAS_STRIDES i64 bias_batch, i64 bias_head, i64 bias_query, i64 bias_key,
#else
#define BIAS_POINTER
#define BIAS_STRIDES
#endif

// Each 16 by 16 piece of a B operand is one ldmatrix. The score products of a chunk of 16 N rows take
// theirs from two tiles: from the first (K, or Q) LEAD steps ahead, then from both in turn, so that more
// sums are in flight, then the rest of the second (V, or dy).
struct Piece { int second, n, step; };
template <int N, int LEAD>
__device__ __forceinline__ constexpr Piece piece(int i) {
    constexpr int FIRST = (LEAD < KD ? LEAD : KD) * N, REST = KD * N - FIRST;
    constexpr int BOTH = REST < KV * N ? REST : KV * N;
    if (i < FIRST) return {0, i % N, i / N};
    i -= FIRST;
    int second = i < 2 * BOTH ? i % 2 : BOTH == REST;
    i = (i < 2 * BOTH ? i / 2 : i - BOTH) + (second ? 0 : FIRST);
    return {second, i % N, i / N};
}

// ---- statistics and dq -------------------------------------------------------------------------

// One pass of a block of query rows over the keys, for the statistics of the rows or for dq.
//
// Without bias, scores are kept in units of log 2 and lse is log2(sum exp2(s)). With bias, scores
// stay in natural units and lse is split into the maximum and log2 of the sum: where every score of
// a row is near the lowest float, adding the logarithm to the maximum would lose it.
template <bool GRADIENT>
__device__ __forceinline__ void pass_over_keys(
    const half_t* __restrict__ q, const half_t* __restrict__ k, const half_t* __restrict__ v,
    const half_t* __restrict__ dy, float* __restrict__ lse, float* __restrict__ delta, half_t* __restrict__ dq,
    BIAS_POINTER i64 B, i64 Lq, i64 Lk, i64 H, i64 Hk, BIAS_STRIDES float scale) {
    constexpr int G = GRADIENT ? GROUPS_Q : GROUPS_STATS, CHUNK = GRADIENT ? CHUNK_Q : CHUNK_STATS;
    constexpr int ROWS = GRADIENT ? ROWS_Q : ROWS_STATS, LEAD = GRADIENT ? LEAD_Q : LEAD_STATS;
    constexpr int N = CHUNK / 16, SCORES = (KD + KV) * N, PIECES = SCORES + (GRADIENT ? KD * N : 0);
    constexpr int A = ahead(PIECES, GRADIENT ? AHEAD_Q : AHEAD_STATS);
    constexpr int PART = 2 * CHUNK < TILE ? 2 * CHUNK : TILE;  // rows of the next tile copied during a chunk
    const u32 k_tiles = shared_address(memory), v_tiles = k_tiles + 2 * TILE * PITCH_D * 2;  // two stages each
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int blocks = (int)((Lq + ROWS - 1) / ROWS);
    const i64 head_index = blockIdx.x / blocks, batch = head_index / H, head = head_index % H;
    const i64 row0 = (i64)(blockIdx.x % blocks) * ROWS + warp * 16 * G;
    const i64 head_k = head / (H / Hk), stride_k = Hk * D, stride_v = Hk * DV;
    q += (batch * Lq * H + head) * D;
    dy += (batch * Lq * H + head) * DV;
    k += (batch * Lk * Hk + head_k) * D;
    v += (batch * Lk * Hk + head_k) * DV;
#ifdef BIAS
    bias += batch * bias_batch + head * bias_head;
#endif
    auto copy_keys = [&](int stage, i64 key0, int first) __attribute__((always_inline)) {
        const int rows = at_most_tile(Lk - key0);
        copy_rows<D, PART>(k_tiles + stage * TILE * PITCH_D * 2, k + key0 * stride_k, stride_k, first, rows);
        copy_rows<DV, PART>(v_tiles + stage * TILE * PITCH_V * 2, v + key0 * stride_v, stride_v, first, rows);
    };
    for (int first = 0; first < TILE; first += PART) copy_keys(0, 0, first);

    u32 q_rows[G][KD][4], dy_rows[G][KV][4];
    float dq_rows[G][2 * KD][4], row_lse[G][2], row_delta[G][2];  // for dq
    float top[G][2], sum[G][2], weighted[G][2];  // for the statistics: of the columns of this thread alone
#ifdef BIAS
    float row_log[G][2];
#else
    // For the maximum the sign of the scale is moved into q; no 0, as 0 times -inf is no number.
    const float scale2 = GRADIENT ? scale * LOG2E : fmaxf(fabsf(scale) * LOG2E, 1e-30f);
#endif
    clear(dq_rows);
#pragma unroll
    for (int g = 0; g < G; g++) {
        load_rows<D>(q_rows[g], q, H * D, row0 + g * 16, Lq);
        load_rows<DV>(dy_rows[g], dy, H * DV, row0 + g * 16, Lq);
#ifndef BIAS
#pragma unroll
        for (int step = 0; step < KD; step++)
#pragma unroll
            for (int r = 0; r < 4; r++) q_rows[g][step][r] ^= !GRADIENT && scale < 0.0f ? 0x80008000u : 0;
#endif
#pragma unroll
        for (int r = 0; r < 2; r++) {
            // From a finite maximum, scores of -inf weigh 0 with no inf - inf.
            top[g][r] = LOWEST, sum[g][r] = weighted[g][r] = 0.0f;
            if (!GRADIENT) continue;
            const i64 row = row0 + g * 16 + lane / 4 + r * 8, at = head_index * Lq + row;
            row_lse[g][r] = row < Lq ? lse[at] : 0.0f;
            row_delta[g][r] = row < Lq ? delta[at] : 0.0f;
#ifdef BIAS
            row_log[g][r] = row < Lq ? lse[B * H * Lq + at] : 0.0f;
#endif
        }
    }

    const Lane stored = lane_stored(), transposed = lane_transposed();
    u32 f[A][4];
    u32 here = 0, next = CHUNK;  // rows of this chunk and of the next in the two stages of the tiles
    auto load = [&](int i) __attribute__((always_inline)) {
        u32 row = i < PIECES ? here : next;
        i %= PIECES;
        if (i < SCORES) {
            Piece t = piece<N, LEAD>(i);
            row += t.n * 16;
            load_matrix(f[i % A], t.second ? piece_address<DV>(v_tiles, stored, row, t.step)
                                           : piece_address<D>(k_tiles, stored, row, t.step));
        } else {
            row += (i - SCORES) / KD * 16;
            load_matrix_transposed(f[i % A], piece_address<D>(k_tiles, transposed, row, (i - SCORES) % KD));
        }
    };
    wait_copies();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < A; i++) load(i);

    i64 key0 = 0;  // first key of the chunk
    auto chunk = [&](bool whole) __attribute__((always_inline)) {
        const int in_tile = here % TILE, present = whole ? CHUNK : (int)(Lk - key0);
        const i64 next_tile = key0 - in_tile + TILE;
        next = (here + CHUNK) % (2 * TILE);
        if (2 * in_tile < TILE && next_tile < Lk) copy_keys(here < TILE, next_tile, 2 * in_tile);
        // Where the next chunk is in another tile, that tile must be complete before its first piece is
        // loaded; past the barrier no warp reads this tile again, so it can be overwritten.
        auto finish = [&](int pieces_left) __attribute__((always_inline)) {
            if (pieces_left == A && in_tile + CHUNK == TILE) {
                wait_copies();
                __syncthreads();
            }
        };
        float s[G][2 * N][4], dp[G][2 * N][4];
        clear(s);
        clear(dp);
#pragma unroll
        for (int i = 0; i < SCORES; i++) {
            Piece t = piece<N, LEAD>(i);
            if (t.second) multiply(dp, t.n, dy_rows, t.step, f[i % A]);
            else multiply(s, t.n, q_rows, t.step, f[i % A]);
            finish(PIECES - i);
            load(i + A);
        }
#ifdef BIAS
#pragma unroll
        for (int g = 0; g < G; g++)
#pragma unroll
            for (int n = 0; n < 2 * N; n++)
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const int column = n * 8 + lane % 4 * 2 + r % 2;
                    const i64 row = row0 + g * 16 + lane / 4 + r / 2 * 8, key = key0 + column;
                    s[g][n][r] = s[g][n][r] * scale + (row < Lq && column < present ?
                        bias_float(bias[row * bias_query + key * bias_key]) : 0.0f);
                }
#endif
        if (!GRADIENT) {
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float greatest = -INF;
#pragma unroll
                    for (int n = 0; n < 2 * N; n++)
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; e++) {
                            if (present < CHUNK && n * 8 + lane % 4 * 2 + e % 2 >= present) s[g][n][e] = -INF;
                            greatest = fmaxf(greatest, s[g][n][e]);
                        }
#ifdef BIAS
                    float new_top = fmaxf(top[g][r], greatest), shrink = exp2_fast((top[g][r] - new_top) * LOG2E);
#else
                    float new_top = fmaxf(top[g][r], greatest * scale2), shrink = exp2_fast(top[g][r] - new_top);
#endif
                    top[g][r] = new_top;
                    float part = 0.0f, part_weighted = 0.0f;
#pragma unroll
                    for (int n = 0; n < 2 * N; n++)
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; e++) {
#ifdef BIAS
                            float p = exp2_fast((s[g][n][e] - new_top) * LOG2E);
#else
                            float p = exp2_fast(s[g][n][e] * scale2 - new_top);
#endif
                            part += p;
                            part_weighted += p * dp[g][n][e];
                        }
                    sum[g][r] = sum[g][r] * shrink + part;
                    weighted[g][r] = weighted[g][r] * shrink + part_weighted;
                }
        } else {
            u32 ds[G][N][4];
#pragma unroll
            for (int g = 0; g < G; g++)
#pragma unroll
                for (int n = 0; n < 2 * N; n++) {
#pragma unroll
                    for (int r = 0; r < 4; r++) {
#ifdef BIAS
                        float p = exp2_fast((s[g][n][r] - row_lse[g][r / 2]) * LOG2E - row_log[g][r / 2]);
#else
                        float p = exp2_fast(s[g][n][r] * scale2 - row_lse[g][r / 2]);
#endif
                        if (!whole && n * 8 + lane % 4 * 2 + r % 2 >= present) p = 0.0f;
                        s[g][n][r] = p * (dp[g][n][r] - row_delta[g][r / 2]);
                    }
                    // Two neighbouring 8-column accumulators are one 16-column A operand.
                    ds[g][n / 2][n % 2 * 2] = pack(s[g][n][0], s[g][n][1]);
                    ds[g][n / 2][n % 2 * 2 + 1] = pack(s[g][n][2], s[g][n][3]);
                }
#pragma unroll
            for (int i = SCORES; i < PIECES; i++) {
                multiply(dq_rows, (i - SCORES) % KD, ds, (i - SCORES) / KD, f[i % A]);
                finish(PIECES - i);
                load(i + A);
            }
        }
        here = next;
        key0 += CHUNK;
    };
#pragma unroll 1
    while (key0 + CHUNK <= Lk) chunk(true);
    if (key0 < Lk) chunk(false);

#pragma unroll
    for (int g = 0; g < G; g++) {
        if (GRADIENT) store_rows<D>(dq + (batch * Lq * H + head) * D, H * D, row0 + g * 16, Lq, dq_rows[g], scale);
        else
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // The four lanes of a row have its columns between them.
                float whole = fmaxf(top[g][r], __shfl_xor_sync(~0u, top[g][r], 1));
                whole = fmaxf(whole, __shfl_xor_sync(~0u, whole, 2));
#ifdef BIAS
                const float shrink = exp2_fast((top[g][r] - whole) * LOG2E);
#else
                const float shrink = exp2_fast(top[g][r] - whole);
#endif
                float total = sum[g][r] * shrink, product = weighted[g][r] * shrink;
                total += __shfl_xor_sync(~0u, total, 1);
                total += __shfl_xor_sync(~0u, total, 2);
                product += __shfl_xor_sync(~0u, product, 1);
                product += __shfl_xor_sync(~0u, product, 2);
                const i64 row = row0 + g * 16 + lane / 4 + r * 8, at = head_index * Lq + row;
                if (lane % 4 == 0 && row < Lq) {
                    const bool empty = !(total > 0.0f);  // every score is -inf: +inf makes all weights 0 later
#ifdef BIAS
                    lse[at] = empty ? INF : whole;
                    lse[B * H * Lq + at] = empty ? 0.0f : log2_fast(total);
#else
                    lse[at] = empty ? INF : whole + log2_fast(total);
#endif
                    delta[at] = empty ? 0.0f : product / total;
                }
            }
    }
}

#ifdef BIAS
#define BIAS_ARGUMENTS bias_batch, bias_head, bias_query, bias_key,
#define BIAS_ARGUMENT bias,
#else
#define BIAS_ARGUMENTS
#define BIAS_ARGUMENT
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_grad_rows(const half_t* __restrict__ q, const half_t* __restrict__ k, const half_t* __restrict__ v,
                    const half_t* __restrict__ dy, float* __restrict__ lse, float* __restrict__ delta,
                    BIAS_POINTER i64 B, i64 Lq, i64 Lk, i64 H, i64 Hk, BIAS_STRIDES float scale) {
    pass_over_keys<false>(q, k, v, dy, lse, delta, nullptr, BIAS_ARGUMENT B, Lq, Lk, H, Hk, BIAS_ARGUMENTS scale);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_grad_q(const half_t* __restrict__ q, const half_t* __restrict__ k, const half_t* __restrict__ v,
                 const half_t* __restrict__ dy, float* __restrict__ lse, float* __restrict__ delta,
                 half_t* __restrict__ dq, BIAS_POINTER
                 i64 B, i64 Lq, i64 Lk, i64 H, i64 Hk, BIAS_STRIDES float scale) {
    pass_over_keys<true>(q, k, v, dy, lse, delta, dq, BIAS_ARGUMENT B, Lq, Lk, H, Hk, BIAS_ARGUMENTS scale);
}

// ---- dk and dv ---------------------------------------------------------------------------------

// Scores are computed transposed, keys by queries: p^T and ds^T then leave the accumulators in the
// layout of the A operand of the products for dv and dk.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_grad_kv(const half_t* __restrict__ q, const half_t* __restrict__ k, const half_t* __restrict__ v,
                  const half_t* __restrict__ dy, const float* __restrict__ lse, const float* __restrict__ delta,
                  half_t* __restrict__ dk, half_t* __restrict__ dv, BIAS_POINTER
                  i64 B, i64 Lq, i64 Lk, i64 H, i64 Hk, BIAS_STRIDES float scale) {
    constexpr int G = GROUPS_KV, CHUNK = CHUNK_KV;
    constexpr int N = CHUNK / 16, SCORES = (KD + KV) * N, PIECES = 2 * SCORES;
    // Not more than the second half of the pieces: the barrier below must follow the reads of the statistics.
    constexpr int A = ahead(PIECES, AHEAD_KV < SCORES ? AHEAD_KV : SCORES);
    constexpr int PART = 2 * CHUNK < TILE ? 2 * CHUNK : TILE;
    const u32 q_tiles = shared_address(memory), dy_tiles = q_tiles + 2 * TILE * PITCH_D * 2;
    // lse and delta (and with BIAS the logarithms) of the queries in the two stages
    float* const statistics = (float*)(memory + 4 * TILE * (PITCH_D + PITCH_V));
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int blocks = (int)((Lk + ROWS_KV - 1) / ROWS_KV);
    const i64 head_index = blockIdx.x / blocks, batch = head_index / Hk, head_k = head_index % Hk;
    const i64 row0 = (i64)(blockIdx.x % blocks) * ROWS_KV + warp * 16 * G;
    const i64 stride_q = H * D, stride_dy = H * DV;
    const int group = (int)(H / Hk);
    k += (batch * Lk * Hk + head_k) * D;
    v += (batch * Lk * Hk + head_k) * DV;
    q += (batch * Lq * H + head_k * group) * D;
    dy += (batch * Lq * H + head_k * group) * DV;
    lse += (batch * H + head_k * group) * Lq;
    delta += (batch * H + head_k * group) * Lq;
#ifdef BIAS
    bias += batch * bias_batch + head_k * group * bias_head;
#else
    const float scale2 = scale * LOG2E;
#endif
    // Rows past Lq are zeros throughout: their weight is finite and multiplies rows of zeros.
    auto copy_queries = [&](int stage, int head, i64 query0, int first) __attribute__((always_inline)) {
        const int rows = at_most_tile(Lq - query0);
        copy_rows<D, PART>(q_tiles + stage * TILE * PITCH_D * 2, q + head * D + query0 * stride_q, stride_q,
                           first, rows);
        copy_rows<DV, PART>(dy_tiles + stage * TILE * PITCH_V * 2, dy + head * DV + query0 * stride_dy, stride_dy,
                            first, rows);
        if (threadIdx.x < PART) {
            const int row = first + threadIdx.x;
            const i64 at = head * Lq + query0 + (row < rows ? row : 0);
            const u32 to = shared_address(statistics + stage * TILE + row);
            copy4(to, lse + at, row < rows);
            copy4(to + 2 * TILE * 4, delta + at, row < rows);
#ifdef BIAS
            copy4(to + 4 * TILE * 4, lse + B * H * Lq + at, row < rows);
#endif
        }
    };
    for (int first = 0; first < TILE; first += PART) copy_queries(0, 0, 0, first);

    u32 k_rows[G][KD][4], v_rows[G][KV][4];
    float sum_k[G][2 * KD][4], sum_v[G][2 * KV][4];
    clear(sum_k);
    clear(sum_v);
#pragma unroll
    for (int g = 0; g < G; g++) {
        load_rows<D>(k_rows[g], k, Hk * D, row0 + g * 16, Lk);
        load_rows<DV>(v_rows[g], v, Hk * DV, row0 + g * 16, Lk);
    }
    const Lane stored = lane_stored(), transposed = lane_transposed();

    u32 f[A][4];
    u32 here = 0, next = CHUNK;  // rows of this chunk and of the next in the two stages of the tiles
    auto load = [&](int i) __attribute__((always_inline)) {
        u32 row = i < PIECES ? here : next;
        i %= PIECES;
        if (i < SCORES) {
            Piece t = piece<N, LEAD_KV>(i);
            row += t.n * 16;
            load_matrix(f[i % A], t.second ? piece_address<DV>(dy_tiles, stored, row, t.step)
                                           : piece_address<D>(q_tiles, stored, row, t.step));
        } else if (i < SCORES + KV * N) {
            row += (i - SCORES) / KV * 16;
            load_matrix_transposed(f[i % A], piece_address<DV>(dy_tiles, transposed, row, (i - SCORES) % KV));
        } else {
            row += (i - SCORES - KV * N) / KD * 16;
            load_matrix_transposed(f[i % A], piece_address<D>(q_tiles, transposed, row, (i - SCORES - KV * N) % KD));
        }
    };
    wait_copies();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < A; i++) load(i);

    const int tiles = (int)((Lq + TILE - 1) / TILE);
    int head = 0, tile = 0;
#pragma unroll 1
    while (head < group) {
        const int in_tile = here % TILE;
        const int next_tile = tile + 1 < tiles ? tile + 1 : 0, next_head = next_tile == 0 ? head + 1 : head;
        next = (here + CHUNK) % (2 * TILE);
        if (2 * in_tile < TILE && next_head < group)
            copy_queries(here < TILE, next_head, (i64)next_tile * TILE, 2 * in_tile);
        auto finish = [&](int pieces_left) __attribute__((always_inline)) {
            if (pieces_left == A && in_tile + CHUNK == TILE) {
                wait_copies();
                __syncthreads();
            }
        };
        float s[G][2 * N][4], dp[G][2 * N][4];
        clear(s);
        clear(dp);
#pragma unroll
        for (int i = 0; i < SCORES; i++) {
            Piece t = piece<N, LEAD_KV>(i);
            if (t.second) multiply(dp, t.n, v_rows, t.step, f[i % A]);
            else multiply(s, t.n, k_rows, t.step, f[i % A]);
            load(i + A);
        }
        u32 p16[G][N][4], ds[G][N][4];
        const float* columns = statistics + here + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2 * N; n++) {
            const float2 column_lse = *(const float2*)(columns + n * 8);
            const float2 column_delta = *(const float2*)(columns + n * 8 + 2 * TILE);
#ifdef BIAS
            const float2 column_log = *(const float2*)(columns + n * 8 + 4 * TILE);
#endif
#pragma unroll
            for (int g = 0; g < G; g++) {
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    float m = r % 2 ? column_lse.y : column_lse.x;
#ifdef BIAS
                    i64 key = row0 + g * 16 + lane / 4 + r / 2 * 8;
                    i64 query = (i64)tile * TILE + in_tile + n * 8 + lane % 4 * 2 + r % 2;
                    float b = query < Lq && key < Lk ?
                        bias_float(bias[head * bias_head + query * bias_query + key * bias_key]) : 0.0f;
                    float p = exp2_fast((s[g][n][r] * scale + b - m) * LOG2E - (r % 2 ? column_log.y : column_log.x));
#else
                    float p = exp2_fast(s[g][n][r] * scale2 - m);
#endif
                    s[g][n][r] = p;
                    dp[g][n][r] = p * (dp[g][n][r] - (r % 2 ? column_delta.y : column_delta.x));
                }
                // Two neighbouring 8-column accumulators are one 16-column A operand.
                p16[g][n / 2][n % 2 * 2] = pack(s[g][n][0], s[g][n][1]);
                p16[g][n / 2][n % 2 * 2 + 1] = pack(s[g][n][2], s[g][n][3]);
                ds[g][n / 2][n % 2 * 2] = pack(dp[g][n][0], dp[g][n][1]);
                ds[g][n / 2][n % 2 * 2 + 1] = pack(dp[g][n][2], dp[g][n][3]);
            }
        }
#pragma unroll
        for (int i = SCORES; i < PIECES; i++) {
            const int j = i - SCORES;
            if (j < KV * N) multiply(sum_v, j % KV, p16, j / KV, f[i % A]);
            else multiply(sum_k, (j - KV * N) % KD, ds, (j - KV * N) / KD, f[i % A]);
            finish(PIECES - i);
            load(i + A);
        }
        here = next;
        if (in_tile + CHUNK == TILE) head = next_head, tile = next_tile;
    }
    dk += (batch * Lk * Hk + head_k) * D;
    dv += (batch * Lk * Hk + head_k) * DV;
#pragma unroll
    for (int g = 0; g < G; g++) {
        store_rows<D>(dk, Hk * D, row0 + g * 16, Lk, sum_k[g], scale);
        store_rows<DV>(dv, Hk * DV, row0 + g * 16, Lk, sum_v[g], 1.0f);
    }
}
