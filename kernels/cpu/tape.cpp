// A forward pass without Python (kernels/tape.py): the operators that one run called, called again in their order.
#include <ATen/ScalarOps.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/custom_class.h>

#include <string>
#include <vector>

namespace ostinato {
namespace {

using Indices = std::vector<int64_t>;

// Arguments and results are registers. An argument below zero is a list of tensors, -1 - i being the i-th list.
struct Call {
  c10::OperatorHandle operation;
  Indices arguments, results, released;  // released: results that no later call reads
};

class Tape : public torch::CustomClassHolder {
 public:
  // A new register, with what does not change from run to run, or with nothing until a call fills it.
  int64_t hold(const c10::IValue& value) {
    registers_.push_back(value);
    return static_cast<int64_t>(registers_.size()) - 1;
  }

  // A list of tensors, as an argument.
  int64_t list(Indices elements) {
    lists_.push_back(std::move(elements));
    return -static_cast<int64_t>(lists_.size());
  }

  void append(const std::string& name, const std::string& overload, Indices arguments, Indices results,
              Indices released) {
    const auto operation = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
    TORCH_CHECK(arguments.size() == operation.schema().arguments().size(), name, " takes ",
                operation.schema().arguments().size(), " arguments, got ", arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) hold_number(operation.schema().arguments()[i], arguments[i]);
    calls_.push_back({operation, std::move(arguments), std::move(results), std::move(released)});
  }

  at::Tensor run(int64_t result) {
    torch::jit::Stack stack;
    for (const Call& call : calls_) {
      stack.clear();
      for (size_t i = 0; i < call.arguments.size(); ++i) stack.push_back(argument(call, i));
      call.operation.callBoxed(stack);
      keep(stack, call.results);
      for (const int64_t i : call.released) registers_[i] = c10::IValue();
    }
    return registers_.at(result).toTensor();
  }

 private:
  // Python's dispatch leaves a number a number where an operator takes a tensor.
  void hold_number(const c10::Argument& argument, int64_t at) {
    if (at >= 0 && argument.type()->kind() == c10::TypeKind::TensorType && registers_.at(at).isScalar())
      registers_[at] = at::native::wrapped_scalar_tensor(registers_[at].toScalar());
  }

  c10::IValue argument(const Call& call, size_t i) const {
    const int64_t at = call.arguments[i];
    if (at >= 0) return registers_[at];
    const Indices& elements = lists_[-1 - at];
    const auto type = call.operation.schema().arguments()[i].type()->cast<c10::ListType>();
    c10::impl::GenericList values(type->getElementType());
    for (const int64_t element : elements) values.push_back(registers_[element]);
    return values;
  }

  void keep(torch::jit::Stack& stack, const Indices& results) {
    size_t next = 0;
    for (c10::IValue& value : stack) {
      if (!value.isTensorList()) {
        registers_[results.at(next++)] = std::move(value);
        continue;
      }
      for (const at::Tensor& tensor : value.toTensorVector()) registers_[results.at(next++)] = tensor;
    }
  }

  std::vector<c10::IValue> registers_;
  std::vector<Indices> lists_;
  std::vector<Call> calls_;
};

TORCH_LIBRARY_FRAGMENT(ostinato, m) {
  m.class_<Tape>("Tape")
      .def(torch::init<>())
      .def("hold", &Tape::hold)
      .def("list", &Tape::list)
      .def("append", &Tape::append)
      .def("run", &Tape::run);
}

}  // namespace
}  // namespace ostinato
