// The bytes that the checksum of `gpureg demo large` is of, from the definitions of the weights and of the arithmetic
// alone: it shares no code with gpureg. Build with -O2 -ffp-contract=off; run with the number of elements.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

// Element i of the weights of a seed: splitmix64 at its place, six bytes of it added, centred and scaled.
static float weight(uint64_t i, uint64_t seed) {
  uint64_t z = (i + 1 + (seed << 40)) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  int total = 0;
  for (int byte = 0; byte < 6; ++byte) total += (z >> (8 * byte)) & 255;
  return static_cast<float>(2 * total - 6 * 255) * 0x1p-13f;
}

// The perfect binary tree, padded with zeros to a power of two.
static double tree(std::vector<double> leaves) {
  while (leaves.size() > 1) {
    if (leaves.size() % 2) leaves.push_back(0.0);
    for (size_t i = 0; i < leaves.size() / 2; ++i) leaves[i] = leaves[2 * i] + leaves[2 * i + 1];
    leaves.resize(leaves.size() / 2);
  }
  return leaves.empty() ? 0.0 : leaves[0];
}

int main(int, char** arguments) {
  const size_t size = std::strtoull(arguments[1], nullptr, 10), tile = 8192, lanes = 512;
  const double l1 = 1e-5, l2 = 1e-4;
  const float c1 = static_cast<float>(l1), c2 = static_cast<float>(2 * l2);
  std::vector<double> abs_sums, square_sums;
  std::vector<float> result(1 + size);
  for (size_t start = 0; start < size; start += tile) {
    std::vector<double> abs_lanes(lanes), square_lanes(lanes);
    for (size_t i = start; i < size && i < start + tile; ++i) {
      const float w = weight(i, 0);
      const double x = w;
      abs_lanes[(i - start) % lanes] += std::fabs(x);
      square_lanes[(i - start) % lanes] += x * x;
      const float sign = w > 0 ? 1.0f : w < 0 ? -1.0f : 0.0f;
      const float first = c1 * sign, second = c2 * w, gradient = first + second;
      result[1 + i] = weight(i, 1) * 0x1p-5f + gradient;
    }
    abs_sums.push_back(tree(abs_lanes));
    square_sums.push_back(tree(square_lanes));
  }
  result[0] = static_cast<float>(l1 * tree(abs_sums) + l2 * tree(square_sums));
  std::fwrite(result.data(), sizeof(float), result.size(), stdout);
}
