// A decoder layer in two halves, for inference: what comes before its attention, and what comes behind.
//
// A linear layer is four tensors: its packed weight, its bias, and the packed A and B of an adapter; an empty one stands for none.
// Layers that read the same x (queries, keys and values; gate and up) are one: weights stand below each other, and so do their A,
// while B has a block for each of them. Everything is rounded where a model that runs layer by layer would round it.
#pragma once

#include "product.h"
#include "rows.h"

namespace {

// x W^T + b, and + (x A^T) B^T: (M, O), and onto what is there. The scale of an adapter is inside its B.
Tensor linear(const Tensor& x, const Tensor* layer, int64_t outputs, const std::optional<Tensor>& onto = std::nullopt) {
  const auto bias = layer[1].numel() ? std::optional<Tensor>(layer[1]) : std::nullopt;
  if (layer[2].numel() == 0) return product_sum(x, layer[0], outputs, bias, std::nullopt, onto);
  const Tensor h = packed_product(x, layer[2], 2 * layer[3].size(1), std::nullopt);
  return product_sum(x, layer[0], outputs, bias, Factor(h, layer[3]), onto);
}

// x (T, D); the norm and the linear layer (4) in front of attention; cos, sin (T, K) -> queries, keys (turned) and values (T, heads, K)
std::tuple<Tensor, Tensor, Tensor> before_attention(const Tensor& x, const Tensor& norm, double eps, const std::vector<Tensor>& layer,
                                                    const Tensor& cos, const Tensor& sin, int64_t H, int64_t G) {
  const int64_t T = x.size(0), K = cos.size(1);
  const Tensor y = linear(std::get<0>(rms_forward(x, norm, eps)), layer.data(), (H + 2 * G) * K).view({T, H + 2 * G, K});
  const Tensor turned = rotate(y.narrow(1, 0, H + G), cos, sin, false);
  return {turned.narrow(1, 0, H), turned.narrow(1, H, G), y.narrow(1, H + G, G)};
}

// x (T, D) and what attention made of it (T, H K); the output's linear layer, that of gate and up, and that of down (12 tensors)
// -> the layer's output (T, D)
Tensor after_attention(const Tensor& x, const Tensor& attended, const std::vector<Tensor>& layers, const Tensor& norm,
                       double eps) {
  const int64_t D = x.size(1);
  const Tensor between = linear(attended, &layers[0], D, x.contiguous());
  const int64_t inner = layers[8].size(1) * 2;
  const Tensor both = linear(std::get<0>(rms_forward(between, norm, eps)), &layers[4], 2 * inner);
  return linear(swiglu_rows(both.narrow(1, 0, inner), both.narrow(1, inner, inner)), &layers[8], D, between);
}

}  // namespace
