// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

rom.parameter @w : !rom.tensor<[100, 64], int4, group 32, experts 3> {key = "k"}
// CHECK: 100 rows are not those of 3 experts

// -----

rom.parameter @w : !rom.tensor<[4, 64], float32, experts 4> {key = "k"}
// CHECK: a family of experts is of matrices, not of float32

// -----

rom.parameter @w : !rom.adapter<[64, 64], int4, group 32, experts 4> {key = "k"}
// CHECK: an adapter is no family of experts

// -----

%x = "test.op"() : () -> tensor<4xf32>
%r = rom.route %x {onnx = [["n"]]} : tensor<4xf32> -> !rom.routing<5, 4>
// CHECK: 5 of 4 experts cannot be chosen

// -----

%x = "test.op"() : () -> tensor<6xf32>
%r = rom.route %x {onnx = [["n"]]} : tensor<6xf32> -> !rom.routing<2, 4>
// CHECK: 6 logits for a routing over 4 experts

// -----

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32, experts 2> {key = "k"}
%x, %r = "test.op"() : () -> (tensor<64xf32>, !rom.routing<2, 4>)
%y = rom.expert_linear %x, %r expert 0 by @w {onnx = [["n"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
// CHECK: @w has 2 experts, the routing chooses from 4

// -----

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32, experts 4> {key = "k"}
%x, %r = "test.op"() : () -> (tensor<64xf32>, !rom.routing<2, 4>)
%y = rom.expert_linear %x, %r expert 0 by @w {onnx = [["n"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
// CHECK: experts of @w have shape [32, 64], the operation needs [64, 64]

// -----

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32, experts 4> {key = "k"}
rom.parameter @b : !rom.tensor<[32], float32> {key = "b"}
%x, %r = "test.op"() : () -> (tensor<64xf32>, !rom.routing<2, 4>)
%y = rom.expert_linear %x, %r expert 0 by @w bias @b {onnx = [["n"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<32xf32>
// CHECK: biases @b have shape [32], the operation needs [4, 32]

// -----

%y, %r = "test.op"() : () -> (tensor<64xf32>, !rom.routing<2, 4>)
%z = rom.weigh %y, %r expert 2 {onnx = [["n"]]} : tensor<64xf32>, !rom.routing<2, 4> -> tensor<64xf32>
// CHECK: there is no expert 2 among 2 chosen

// -----

%y, %x, %r = "test.op"() : () -> (tensor<64xf32>, tensor<32xf32>, !rom.routing<2, 4>)
%z = rom.weigh %y, %r expert 0 plus %x {onnx = [["n"]]} : tensor<64xf32>, !rom.routing<2, 4>, tensor<32xf32> -> tensor<64xf32>
// CHECK: rom.weigh: values must have equal sizes, found 64, 32, 64

// -----

rom.parameter @w : !rom.tensor<[128, 64], int4, group 32, experts 4> {key = "k"}
%q, %r = "test.op"() : () -> (!rom.quantized<2, 32, int8>, !rom.routing<2, 4>)
%y = rom.expert_product %q, %r expert 0 by @w {pre_shift = 0 : i64, onnx = [["n"]]} : !rom.quantized<2, 32, int8>, !rom.routing<2, 4> -> !rom.fixed<32, 16>
// CHECK: a matrix takes a vector with one scale
