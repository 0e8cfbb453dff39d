// Packs a weight as coded_weight.h says.
#include "coded_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <tuple>
#include <utility>
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
    for (int64_t k = 0; k < inputs; k += kTileDepth, to += kStepWeights)
      for (int64_t i = 0; i < std::min(kTileDepth, inputs - k); ++i) to[i / 2 * 32 + i % 2] = from[k + i].x;
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
constexpr int64_t place_in_group(int64_t i) { return i % 32 / 8 * 16 + i / 32 * 8 + i % 8; }

// The group that begins at weight `first` of the panel: its low bytes, and codes two to a byte, those of places from 32
// on in the upper halves.
void code_group(const std::vector<uint16_t>& panel, int64_t first, const Table& table, uint8_t* low, uint8_t* codes,
                Outlier*& outliers) {
  for (int64_t i = 0; i < kGroup; ++i) {
    const uint16_t bits = panel[first + i];
    const int64_t place = place_in_group(i);
    const int code = table.codes[bits >> 8];
    low[place] = static_cast<uint8_t>(bits);
    codes[place % 32] |= static_cast<uint8_t>(std::max(code, 0) << place / 32 * 4);
    if (code < 0) *outliers++ = {static_cast<uint32_t>(first + i), bits, 0};
  }
}

void code_panel(const std::vector<uint16_t>& panel, const Table& table, CodedPanel to) {
  const auto weights = static_cast<int64_t>(panel.size());
  if (to.plain()) return void(std::memcpy(to.codes, panel.data(), weights * sizeof(uint16_t)));
  std::copy_n(table.values.begin(), table.values.size(), to.table);
  std::fill_n(to.codes, weights / kStepWeights * kStepBytes, 0);
  for (int64_t step = 0; step < weights; step += kStepWeights, to.codes += kStepBytes)
    for (int64_t group = 0; group < kStepWeights; group += kGroup)
      code_group(panel, step + group, table, to.codes + group, to.codes + kStepWeights + group / 2, to.outliers);
  *to.outliers = {kNoOutlier, 0, 0};
}

// Putting an outlier into its place takes as long as decoding many: a panel with more than one in so many stays plain.
constexpr int64_t kWeightsPerOutlier = 64;

// Where a panel goes that begins at byte `begin`, and where it ends.
std::pair<CodedWeight::Place, int64_t> place_of(const Table& table, int64_t depth, int64_t begin) {
  const bool plain = table.outliers * kWeightsPerOutlier > depth * kStepWeights;
  const int64_t codes = plain ? begin : begin + kLine + CodedPanel::outlier_bytes(table.outliers);
  return {{begin, codes}, codes + depth * (plain ? 2 * kStepWeights : kStepBytes)};
}

template <typename F>
void for_panels(int64_t panels, F f) {
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace

at::Tensor code_weight(const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.scalar_type() == at::kBFloat16 && weight.is_cpu(),
                    "code_weight: a weight is [N,K] bf16, on the CPU");
  const at::Tensor rows = weight.contiguous();
  const CodedWeight::Size size{rows.size(0), rows.size(1)};
  TORCH_CHECK_VALUE(size.depth() * kStepWeights < kNoOutlier, "code_weight: ", size.inputs, " inputs are too many");
  std::vector<Table> tables(size.panels());
  for_panels(size.panels(), [&](int64_t i) { tables[i] = table_of(panel_of(rows, i)); });
  std::vector<CodedWeight::Place> places(size.panels());
  int64_t end = size.first_panel();
  for (int64_t i = 0; i < size.panels(); ++i) std::tie(places[i], end) = place_of(tables[i], size.depth(), end);
  at::Tensor tensor = at::empty({end}, rows.options().dtype(at::kByte));
  *static_cast<CodedWeight::Size*>(tensor.data_ptr()) = size;
  const CodedWeight coded(tensor);
  std::copy(places.begin(), places.end(), coded.places());
  for_panels(size.panels(), [&](int64_t i) { code_panel(panel_of(rows, i), tables[i], coded.panel(i)); });
  return tensor;
}

namespace {

// Whether decoding's instructions are there: beside AMX they always are, unless a virtual machine hides them.
bool can_decode() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

TORCH_LIBRARY_FRAGMENT(ostinato, m) {
  m.def("code_weight(Tensor weight) -> Tensor", code_weight);
  m.def("can_decode() -> bool", can_decode);
}

}  // namespace
}  // namespace ostinato
