// Packs a weight as coded_weight.h says.
#include "coded_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace ostinato {
namespace {

// The bits of one panel's weights in the order in which they are coded; zeros beyond the ends.
std::vector<uint16_t> panel_of(const at::Tensor& weight, int64_t panel) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), first = panel * kPanel;
  std::vector<uint16_t> bits(blocks_of(inputs, kTileDepth) * kStepWeights, 0);
  for (int64_t row = 0; row < std::min(kPanel, outputs - first); ++row) {
    const auto* from = weight.const_data_ptr<c10::BFloat16>() + (first + row) * inputs;
    uint16_t* to = bits.data() + row / 16 * kTileElements + row % 16 * 2;
    for (int64_t k = 0; k < inputs; ++k) to[k / kTileDepth * kStepWeights + k % kTileDepth / 2 * 32 + k % 2] = from[k].x;
  }
  return bits;
}

struct Table {
  std::array<uint8_t, 16> values;
  std::array<int16_t, 256> codes;  // of a high byte, or -1
  int64_t outliers;
};

// The 16 most frequent high bytes; of equally frequent ones the lower.
Table table_of(const std::vector<uint16_t>& panel) {
  std::array<int64_t, 256> times{};
  for (const uint16_t bits : panel) ++times[bits >> 8];
  std::array<int, 256> order;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return times[a] > times[b]; });
  Table table{{}, {}, static_cast<int64_t>(panel.size())};
  table.codes.fill(-1);
  for (int16_t code = 0; code < 16; ++code) {
    table.values[code] = static_cast<uint8_t>(order[code]);
    table.codes[order[code]] = code;
    table.outliers -= times[order[code]];
  }
  return table;
}

// Where a weight of a group has its byte: interleaving bytes within quarters of a vector gives two rows of a tile.
int64_t place_in_group(int64_t i) { return i % 32 / 8 * 16 + i / 32 * 8 + i % 8; }

void code_panel(const std::vector<uint16_t>& panel, const Table& table, CodedPanel to) {
  std::copy_n(table.values.begin(), table.values.size(), to.table);
  std::fill_n(to.codes, panel.size() / kStepWeights * kStepBytes, 0);
  for (size_t i = 0; i < panel.size(); ++i) {
    uint8_t* step = to.codes + i / kStepWeights * kStepBytes;
    const int64_t group = i % kStepWeights / kGroup, place = place_in_group(i % kGroup);
    step[group * kGroup + place] = static_cast<uint8_t>(panel[i]);
    const int code = table.codes[panel[i] >> 8];
    if (code < 0)
      *to.outliers++ = {static_cast<uint32_t>(i), panel[i], 0};
    else  // the first half of a group has the lower four bits of bytes, the second one the upper
      step[kStepWeights + group * kGroup / 2 + place % 32] |= static_cast<uint8_t>(code << place / 32 * 4);
  }
  *to.outliers = {kNoOutlier, 0, 0};
}

template <typename F>
void for_panels(int64_t panels, F f) {
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace

at::Tensor code_weight(const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.scalar_type() == at::kBFloat16, "code_weight: a weight is [N,K] bf16");
  const at::Tensor rows = weight.contiguous();
  const CodedWeight::Size size{rows.size(0), rows.size(1)};
  TORCH_CHECK_VALUE(size.depth() * kStepWeights < kNoOutlier, "code_weight: ", size.inputs, " inputs are too many");
  std::vector<Table> tables(size.panels());
  for_panels(size.panels(), [&](int64_t i) { tables[i] = table_of(panel_of(rows, i)); });
  std::vector<CodedWeight::Place> places;
  int64_t end = size.first_panel();
  for (const Table& table : tables) {
    places.push_back({end, end + kLine + CodedPanel::outlier_bytes(table.outliers)});
    end = places.back().codes + size.depth() * kStepBytes;
  }
  at::Tensor tensor = at::empty({end}, rows.options().dtype(at::kByte));
  *static_cast<CodedWeight::Size*>(tensor.data_ptr()) = size;
  const CodedWeight coded(tensor);
  std::copy(places.begin(), places.end(), coded.places());
  for_panels(size.panels(), [&](int64_t i) { code_panel(panel_of(rows, i), tables[i], coded.panel(i)); });
  return tensor;
}

namespace {

TORCH_LIBRARY_FRAGMENT(ostinato, m) { m.def("code_weight(Tensor weight) -> Tensor", code_weight); }

}  // namespace
}  // namespace ostinato
