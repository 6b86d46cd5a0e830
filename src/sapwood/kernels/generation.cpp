// Kernels of generation on a CPU, beside those of a prompt, which are training's (training.cpp).
//
//   decode.h             attention of one new token a sequence; bf16 and fp32
//   layer.h              a decoder layer around its attention
//   product.h            products with a weight that is laid out once
//   draw.h, filters.h    the tokens that logits give
//   rows.h               what is done row by row
//   vectors.h            registers and layouts

#include <immintrin.h>
#include <torch/library.h>

#include "draw.h"
#include "layer.h"
#include "product.h"

namespace {
#include "decode.h"
}

TORCH_LIBRARY_FRAGMENT(sapwood_cpu, library) {
  library.def("pack_weight(Tensor weight) -> Tensor", pack_weight);
  library.def("packed_product(Tensor x, Tensor packed, int outputs, Tensor? bias) -> Tensor", packed_product);
  library.def(
      "before_attention(Tensor x, Tensor norm, float eps, Tensor[] layer, Tensor cos, Tensor sin, int H, int G) -> "
      "(Tensor, Tensor, Tensor)",
      before_attention);
  library.def("after_attention(Tensor x, Tensor attended, Tensor[] layers, Tensor norm, float eps) -> Tensor",
              after_attention);
  library.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor length_N, int window, float scale, "
      "Tensor[] node_keys, Tensor[] node_values, Tensor[] node_rows) -> (Tensor, Tensor)",
      decode_attention);
  library.def("draw_tokens(Tensor logits, Tensor settings, Tensor? bits, Tensor? starts, Tensor? ids, Tensor? values) -> (Tensor, Tensor)", draw_tokens);
}
