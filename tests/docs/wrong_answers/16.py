"""What learners write in 16, and what the verdict has to say: name -> (answer, pattern) ..."""

RIGHT = """
#include "common.cuh"
extern "C" __global__ void rms(float* y, const float* x, const float* weight, int columns, float eps) {
  __shared__ float scratch[33];
  const float* row = x + (u64)blockIdx.x * columns;
  float squares = 0.0f;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) squares += row[c] * row[c];
  float inv = rsqrtf(block_sum(squares, scratch) / columns + eps);
  for (int c = threadIdx.x; c < columns; c += blockDim.x) y[(u64)blockIdx.x * columns + c] = row[c] * inv * weight[c];
}
"""


def without_a_barrier():
    """Sums in shared memory, read by everybody at once."""
    return RIGHT.replace("scratch[33]", "scratch[1024]").replace("block_sum(squares, scratch)", "total").replace(
        "  float inv", "  scratch[threadIdx.x] = squares;\n  float total = 0.0f;\n  for (int i = 0; i < blockDim.x; i++) total += scratch[i];\n  float inv")


WRONG = {
    "shortest": [(lambda bytes, flop, bandwidth, rate: bytes / bandwidth + flop / rate, "it is"),
                 (lambda bytes, flop, bandwidth, rate: min(bytes / bandwidth, flop / rate), "it is")],
    "state_bytes": [(lambda n, trained: 16 * n, "with LoRA"), (lambda n, trained: 4 * n + 8 * trained, "for full tuning")],
    "fragment_of_b": [(lambda lane: [(lane // 4, 2 * (lane % 4) + i % 2) for i in range(4)], "of 128 numbers"),
                      (lambda lane: [(lane % 4 * 4 + i, lane // 4) for i in range(4)], "the product, thread by thread")],
    "rms_kernel": [(without_a_barrier, "threads in order|has a NaN"), (lambda: RIGHT.replace("c += blockDim.x) squares", "c += 32) squares"), "a difference of"),
                   (lambda: RIGHT.replace("/ columns + eps", "+ eps"), "a difference of"), (lambda: RIGHT.replace("float inv", "float"), "does not compile"),
                   (lambda: RIGHT.replace("void rms(", "void norm("), "KeyError")],
}
