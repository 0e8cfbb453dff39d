// Registration of the CPU operators. Shapes, dtypes and contiguity are checked by the Python wrappers, which the
// reference implementations share (kernels/*.py); an operator here trusts its arguments.
#include <torch/library.h>

#include "conv.h"
#include "recurrence.h"
#include "rows.h"

TORCH_LIBRARY_FRAGMENT(ostinato, m) {
  m.def("sigmoid(Tensor x) -> Tensor");
  m.def("silu(Tensor x) -> Tensor");
  m.def("tanh(Tensor x) -> Tensor");
  m.def("exp(Tensor x) -> Tensor");
  m.def("softplus(Tensor x) -> Tensor");
  m.def("row_dot(Tensor x, Tensor y) -> Tensor");
  m.def("row_norm(Tensor x) -> Tensor");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, ScalarType dtype) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor");
  m.def("causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) tail, Tensor slots, Tensor starts, "
        "bool activate) -> Tensor");
  m.def("recurrence(Tensor q, Tensor k, Tensor v, Tensor(a!) state, Tensor slots, Tensor starts, Tensor? decay, "
        "Tensor? step, Tensor? a, Tensor? b) -> Tensor");
}

TORCH_LIBRARY_IMPL(ostinato, CPU, m) {
  m.impl("sigmoid", ostinato::sigmoid_op);
  m.impl("silu", ostinato::silu_op);
  m.impl("tanh", ostinato::tanh_op);
  m.impl("exp", ostinato::exp_op);
  m.impl("softplus", ostinato::softplus_op);
  m.impl("row_dot", ostinato::row_dot_op);
  m.impl("row_norm", ostinato::row_norm_op);
  m.impl("rms_norm", ostinato::rms_norm_op);
  m.impl("layer_norm", ostinato::layer_norm_op);
  m.impl("causal_conv", ostinato::causal_conv_op);
  m.impl("recurrence", ostinato::recurrence_op);
}
