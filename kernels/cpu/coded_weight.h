// Weights of a projection in three quarters of their bytes, without loss: reading them is most of a decode step.
//
// Of a bf16 the low byte (mantissa, and the last bit of the exponent) is as good as random; the high one (sign, and the
// rest of the exponent) is nearly always one of 16 values, since the weights of a layer are of similar size. So a weight
// is its low byte and four bits, the place of its high byte in a table that 32 outputs share. The few with another high
// byte are outliers, kept apart and put into their places after decoding; where they are not few, these outputs' weights
// stay as they are. (DFloat11, Zhang et al. 2025, measures the entropy of exponents and codes them by Huffman; codes of
// one length are decoded by two instructions.)
//
// Order: panels of 32 outputs; of a panel, steps of 32 inputs; of a step, two tiles of 16 outputs; of a tile, rows of 32
// weights, which are two inputs of 16 outputs, as TDPBF16PS multiplies them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <limits>

namespace ostinato {

constexpr int64_t kTileRows = 16, kTileDepth = 32;  // of a tile of x: 16 rows of 32 bf16, which is 1 KiB
constexpr int64_t kTileElements = kTileRows * kTileDepth;
constexpr int64_t kPanel = 32;                        // outputs that are computed together, two tiles
constexpr int64_t kStepWeights = 2 * kTileElements;   // of a panel, for 32 inputs
constexpr int64_t kStepBytes = kStepWeights * 3 / 2;  // low bytes, then codes
constexpr int64_t kGroup = 64;                        // weights that are decoded together: two rows of a tile
constexpr int64_t kLine = 64;

inline int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct Outlier {
  uint32_t at;  // its place among the panel's weights
  uint16_t bits, unused;
};
constexpr uint32_t kNoOutlier = std::numeric_limits<uint32_t>::max();  // the end of a panel's outliers

// In the order in which it is read: a table of high bytes, outliers, codes [depth, kStepBytes]. All begin a line. Of a
// plain panel, weights [depth, kStepWeights] alone, where codes would be.
struct CodedPanel {
  uint8_t* table;  // [16]
  Outlier* outliers;
  uint8_t* codes;

  bool plain() const { return table == codes; }
  static int64_t outlier_bytes(int64_t count) { return blocks_of((count + 1) * sizeof(Outlier), kLine) * kLine; }
};

// A tensor of bytes: its size, where panels begin and where their codes do [panels, 2], panels.
struct CodedWeight {
  struct alignas(kLine) Size {
    int64_t outputs, inputs;

    int64_t panels() const { return blocks_of(outputs, kPanel); }
    int64_t depth() const { return blocks_of(inputs, kTileDepth); }
    int64_t first_panel() const { return sizeof(Size) + blocks_of(panels() * sizeof(Place), kLine) * kLine; }
  };
  struct Place {
    int64_t panel, codes;
  };

  explicit CodedWeight(const at::Tensor& tensor)
      : bytes(static_cast<uint8_t*>(tensor.data_ptr())), size(*reinterpret_cast<const Size*>(bytes)) {}

  uint8_t* bytes;
  Size size;

  Place* places() const { return reinterpret_cast<Place*>(bytes + sizeof(Size)); }
  CodedPanel panel(int64_t i) const {
    const Place at = places()[i];
    return {bytes + at.panel, reinterpret_cast<Outlier*>(bytes + at.panel + kLine), bytes + at.codes};
  }
};

inline bool is_coded(const at::Tensor& weight) { return weight.scalar_type() == at::kByte; }

// Of the weight that is packed.
inline at::ScalarType dtype_of(const at::Tensor& weight) {
  return is_coded(weight) ? at::kBFloat16 : weight.scalar_type();
}

// weight [N,K] bf16 -> bytes.
at::Tensor code_weight(const at::Tensor& weight);

}  // namespace ostinato
