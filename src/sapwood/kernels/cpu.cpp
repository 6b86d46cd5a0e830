// Training kernels for a CPU whose matrix products take bf16. In: contiguous rows of bf16. Out: the same in few passes over memory.
//
//   attention_forward.h, attention_backward.h    ancestor attention
//   linears.h                                    LoRA linear layers, there and back
//   rows.h                                       what is done row by row: norms, gates, rotary positions, the head's loss
//   draw.h, filters.h                            the tokens that logits give
//   decode.h                                     attention of one new token a sequence; bf16 and fp32
//   product.h                                    products with a weight that is laid out once
//   layer.h                                      a decoder layer around its attention, for inference
//   vectors.h                                    registers and layouts
//
// Everything is computed in fp32 and rounded once on the way out. Each number is made by one thread in a fixed order, so that
// results do not depend on the number of threads. Left out on purpose: other types, which run torch's own operators.
//
// One file is compiled, and the others are part of it: most of the time goes into torch's own headers.

#include <immintrin.h>
#include <torch/library.h>

#include "attention_backward.h"
#include "attention_forward.h"
#include "draw.h"
#include "layer.h"
#include "linears.h"
#include "product.h"
#include "rows.h"

namespace {
#include "decode.h"
}

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
  library.def("pack_weight(Tensor weight) -> Tensor", pack_weight);
  library.def("packed_product(Tensor x, Tensor packed, int outputs, Tensor? bias) -> Tensor", packed_product);
  library.def(
      "before_attention(Tensor x, Tensor norm, float eps, Tensor[] layer, Tensor cos, Tensor sin, int H, int G) -> "
      "(Tensor, Tensor, Tensor)",
      before_attention);
  library.def("after_attention(Tensor x, Tensor attended, Tensor[] layers, Tensor norm, float eps) -> Tensor",
              after_attention);
  library.def("rotate(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", rotate);
  library.def("row_lse(Tensor logits) -> Tensor", row_lse);
  library.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor length_N, int window, float scale, "
      "Tensor[] node_keys, Tensor[] node_values, Tensor[] node_rows) -> (Tensor, Tensor)",
      decode_attention);
  library.def("draw_tokens(Tensor logits, Tensor settings, Tensor? bits, Tensor? starts, Tensor? ids, Tensor? values) -> (Tensor, Tensor)", draw_tokens);
  library.def("pull(Tensor logits, Tensor lse, Tensor row_N, Tensor token_N) -> Tensor", pull);
  library.def("pull_(Tensor(a!) logits, Tensor lse, Tensor token_N) -> Tensor(a!)", pull_in_place);
}
