// Kernels of a training step on a CPU whose matrix products take bf16. In: contiguous rows of bf16. Out: the same in few passes over memory.
//
//   attention_forward.h, attention_backward.h    ancestor attention
//   linears.h                                    LoRA linear layers, there and back
//   rows.h                                       what is done row by row: norms, gates, rotary positions, the head's loss
//   vectors.h                                    registers and layouts
//
// Everything is computed in fp32 and rounded once on the way out. Each number is made by one thread in a fixed order, so that
// results do not depend on the number of threads. Left out on purpose: other types, which run torch's own operators.
//
// This file and generation.cpp are compiled at the same time and linked into one library: half of the time goes into torch's own headers.

#include <immintrin.h>
#include <torch/library.h>

#include "attention_backward.h"
#include "attention_forward.h"
#include "linears.h"
#include "rows.h"

TORCH_LIBRARY(sapwood_cpu, library) {
  library.def("tree_forward(Tensor q, Tensor k, Tensor v, Tensor parts, float scale) -> (Tensor, Tensor)", tree_forward);
  library.def("tree_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor parts, float scale) -> (Tensor, Tensor, Tensor)",
              tree_backward);
  library.def("lora_forward(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] a, Tensor[] b, float[] scales) -> (Tensor[], Tensor)", lora_forward);
  library.def(
      "lora_backward(Tensor x, Tensor h, Tensor[] grads, Tensor[] weights, Tensor[] a, Tensor[] b, float[] scales, bool needs_x) -> "
      "(Tensor, Tensor, Tensor[])",
      lora_backward);
  library.def("rms_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)", rms_forward);
  library.def("rms_backward(Tensor g, Tensor x, Tensor weight, Tensor inverse) -> Tensor", rms_backward);
  library.def("swiglu_forward(Tensor gate, Tensor up) -> Tensor", swiglu_forward);
  library.def("swiglu_backward(Tensor g, Tensor gate, Tensor up) -> (Tensor, Tensor)", swiglu_backward);
  library.def("rotate(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", rotate);
  library.def("row_lse(Tensor logits) -> Tensor", row_lse);
  library.def("pull(Tensor logits, Tensor lse, Tensor row_N, Tensor token_N) -> Tensor", pull);
  library.def("pull_(Tensor(a!) logits, Tensor lse, Tensor token_N) -> Tensor(a!)", pull_in_place);
}
