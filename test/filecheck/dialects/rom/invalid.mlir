// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

// Types.

rom.parameter @w : !rom.tensor<[64, 64], int5, group 32> {key = "k"}
// CHECK: unknown code 'int5', known are ternary, int2, int3, int4, int6, int8, fixed16, fixed32, float32

// -----

rom.parameter @w : !rom.tensor<[64, 0], int4, group 32> {key = "k"}
// CHECK: every dimension must be at least 1

// -----

rom.parameter @w : !rom.tensor<[], float32> {key = "k"}
// CHECK: every dimension must be at least 1

// -----

rom.parameter @w : !rom.tensor<[64], int4, group 32> {key = "k"}
// CHECK: a matrix of int4 has two dimensions, rows and columns

// -----

rom.parameter @w : !rom.tensor<[64, 64], ternary, zeros> {key = "k"}
// CHECK: zero points of ternary need the size of their groups

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32, zeros, offsets 19> {key = "k"}
// CHECK: int4 has zero points or offsets, not both

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, offsets 19> {key = "k"}
// CHECK: offsets of int4 need the size of their groups

// -----

rom.parameter @w : !rom.tensor<[64, 64], ternary, group 32, offsets 19> {key = "k"}
// CHECK: ternary has no offsets; int2, int4, int8 may have them

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32, offsets 33> {key = "k"}
// CHECK: offsets have 1 to 32 bits, not 33

// -----

rom.parameter @w : !rom.adapter<[8, 64], int4, group 32, offsets 19> {key = "k"}
// CHECK: an adapter has no offsets

// -----

rom.parameter @w : !rom.tensor<[64], float32, offsets 19> {key = "k"}
// CHECK: float32 has neither groups nor zero points

// -----

rom.parameter @w : !rom.tensor<[64, 64], fixed16, group 32> {key = "k"}
// CHECK: fixed16 has neither groups nor zero points

// -----

rom.parameter @w : !rom.adapter<[64, 64], float32, zeros> {key = "k"}
// CHECK: float32 has neither groups nor zero points

// -----

rom.parameter @w : !rom.tensor<[64, 64], fp8> {key = "k"}
// CHECK: unknown code 'fp8', known are ternary, int2, int3, int4, int6, int8, fixed16, fixed32, float32

// -----

rom.parameter @w : !rom.adapter<[64, 64], int4> {key = "k"}
// CHECK: an adapter of int4 needs the size of its groups; a slot without is one of fp8, int8, int6, ternary

// -----

rom.parameter @w : !rom.adapter<[64, 64], fp8, group 32> {key = "k"}
// CHECK: an adapter of fp8 has one scale a row, no groups

// -----

rom.parameter @w : !rom.tensor<[64, 32], int4, group 32> {key = "k"}
rom.parameter @a : !rom.adapter<[8, 32], int8, group 32> {key = "a"}
rom.parameter @b : !rom.adapter<[64, 8], fp8> {key = "b"}
rom.site "layers.0.q_proj" beside @w rows 0 to 64 by @a, @b {onnx = [["q"]]}
// CHECK: the adapter of site layers.0.q_proj is no slot: it has groups

// -----

rom.parameter @w : !rom.tensor<[64, 32], int4, group 32> {key = "k"}
rom.parameter @a : !rom.adapter<[8, 32], fp8> {key = "a"}
rom.parameter @b : !rom.adapter<[64, 8], fp8> {key = "b"}
rom.site "layers.0.q_proj" beside @w rows 32 to 96 by @a, @b {onnx = [["q"]]}
// CHECK: site layers.0.q_proj stands for rows 32 to 96 of a matrix of 64

// -----

rom.parameter @w : !rom.tensor<[64, 32], int4, group 32> {key = "k"}
rom.parameter @a : !rom.adapter<[8, 32], fp8> {key = "a"}
rom.parameter @b : !rom.adapter<[64, 8], fp8> {key = "b"}
rom.site "layers.0.q_proj" beside @w rows 0 to 32 by @a, @b {onnx = [["q"]]}
// CHECK: site layers.0.q_proj needs A [rank, 32] and B [32, rank], found [8, 32] and [64, 8]

// -----

rom.parameter @w : !rom.tensor<[64, 32], int4, group 32> {key = "k"}
rom.parameter @a : !rom.adapter<[8, 32], fp8> {key = "a"}
rom.site "layers.0.q_proj" beside @w rows 0 to 32 by @a, @w {onnx = [["q"]]}
// CHECK: @w is !rom.tensor<[64, 32], int4, group 32>, expected !rom.adapter

// -----

rom.cache @k : !rom.kv<128, 0, 16, int8>
// CHECK: capacity, heads and width of a KV buffer must be at least 1

// -----

rom.cache @k : !rom.kv<128, 2, 16, int7>
// CHECK: unknown KV format 'int7', known are int4, int8, int16, fp8, half8, and float32 before legalisation

// -----

rom.parameter @w : !rom.tensor<64, int4> {key = "k"}
// CHECK: '[' expected

// -----

// Declarations.

rom.parameter @w : !rom.kv<128, 2, 16, int8> {key = "k"}
// CHECK: a KV buffer is declared with rom.cache

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32, zeros> {key = "k", zero = 8 : i64}
// CHECK: `zero` is for matrices whose type has no zero points

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32, offsets 19> {key = "k"}
// CHECK: with offsets `zero` is the middle of the codes, 8

// -----

rom.parameter @w : !rom.tensor<[64, 64], int2, group 32, offsets 19> {key = "k", zero = 1 : i64}
// CHECK: with offsets `zero` is the middle of the codes, 2

// -----

rom.parameter @w : !rom.tensor<[64, 64], int2, group 32, offsets 19> {key = "k", zero = 2 : i64}
%t = "test.op"() : () -> i32
%x = rom.embed %t of @w {onnx = [["n"]]} : tensor<64xf32>
// CHECK: @w: a table has no offsets

// -----

rom.parameter @w : !rom.tensor<[64], float32> {key = "k", zero = 0 : i64}
// CHECK: `zero` is for matrices whose type has no zero points

// -----

rom.parameter @w : !rom.tensor<[64], float32>
// CHECK: property 'key' expected

// -----

rom.cache @k : !rom.tensor<[64], float32>
// CHECK: a cache has a type !rom.kv, not !rom.tensor<[64], float32>

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8, static>
// CHECK: a cache with a static scale states it as `static_scale`

// -----

// Structure.

rom.layer @l {
^bb0(%x: tensor<64xf32>):
  rom.yield %x : tensor<64xf32>
}
// CHECK: the first argument of a layer is the position (index)

// -----

rom.layer @l {
^bb0(%p: index):
  rom.slot @w : !rom.tensor<[64], float32>
}
// CHECK: Operation rom.slot terminates block in single-block region but is not a terminator

// -----

rom.layer @l {
^bb0(%p: index):
  "test.termop"() : () -> ()
}
// CHECK: a layer ends with rom.yield

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.yield
}
// CHECK: a layer yields values of the types that it carries

// -----

rom.step @decode context 8 {
^bb0(%position: index):
  "test.termop"() : () -> ()
}
// CHECK: a step takes a token (i32) and a position (index)

// -----

rom.step @decode context 8 {
^bb0(%token: i32, %position: index):
  "test.termop"() : () -> ()
}
// CHECK: a step ends with rom.emit

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  %t = "test.op"() : () -> i32
  rom.emit %x, %t : tensor<64xf32>
}
// CHECK: 'rom.emit' expects parent op 'rom.step'

// -----

%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @missing at %p (%x) instances [{}] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: no layer @missing is declared

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @l at %p (%x) instances [{}] : (tensor<64xf32>) -> tensor<32xf32>
// CHECK: a repeated layer gives back the types that it takes

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<32xf32>)
%y = rom.repeat @l at %p (%x) instances [{}] : (tensor<32xf32>) -> tensor<32xf32>
// CHECK: layer @l carries (tensor<64xf32>), it is given (tensor<32xf32>)

// -----

rom.layer @l {
^bb0(%p: index):
  rom.yield
}
%p = "test.op"() : () -> index
"rom.repeat"(%p) <{layer = @l, instances = [{}]}> : (index) -> ()
// CHECK: a repeated layer carries at least one value

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @l at %p (%x) instances [] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: a repeated layer needs at least one instance

// -----

rom.parameter @w : !rom.tensor<[64], float32> {key = "k"}
rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.slot @g : !rom.tensor<[64], float32>
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @l at %p (%x) instances [{g = @w}, {h = @w}] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: instance 1 binds ['h'], the slots of the layer are ['g']

// -----

rom.parameter @w : !rom.tensor<[32], float32> {key = "k"}
rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.slot @g : !rom.tensor<[64], float32>
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @l at %p (%x) instances [{g = @w}] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: instance 0 binds slot @g of !rom.tensor<[64], float32> to @w of !rom.tensor<[32], float32>

// -----

rom.layer @l {
^bb0(%p: index, %x: tensor<64xf32>):
  rom.slot @g : !rom.tensor<[64], float32>
  rom.yield %x : tensor<64xf32>
}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.repeat @l at %p (%x) instances [{g = 3 : i64}] : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: instance 0 binds slot @g to no symbol

// -----

// Operators.

%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @missing {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: no buffer @missing is declared

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = "rom.linear"(%x) <{weights = @w}> : (tensor<64xf32>) -> tensor<64xf32>
// CHECK: property 'onnx' expected

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%x = "test.op"() : () -> tensor<1x64xf32>
%y = rom.linear %x by @w {onnx = [["n"]]} : tensor<1x64xf32> -> tensor<64xf32>
// CHECK: tensor<1x64xf32> is not a vector

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%x = "test.op"() : () -> tensor<64xi8>
%y = rom.linear %x by @w {onnx = [["n"]]} : tensor<64xi8> -> tensor<64xf32>
// CHECK: tensor<64xi8> is not a vector

// -----

rom.parameter @e : !rom.tensor<[256, 32], float32> {key = "k"}
%t = "test.op"() : () -> i32
%x = rom.embed %t of @e {onnx = [["n"]]} : tensor<64xf32>
// CHECK: rows of @e have 32 elements, the result has 64

// -----

rom.parameter @e : !rom.tensor<[256, 32], float32> {key = "k"}
%p = "test.op"() : () -> index
%x = rom.embed_position %p of @e {onnx = [["n"]]} : tensor<64xf32>
// CHECK: rows of @e have 32 elements, the result has 64

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%t = "test.op"() : () -> i32
%x = rom.embed %t of @k {onnx = [["n"]]} : tensor<64xf32>
// CHECK: @k is !rom.kv<128, 2, 16, int8>, expected !rom.tensor

// -----

rom.parameter @w : !rom.tensor<[64, 32], int4, group 32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {onnx = [["n"]]} : tensor<64xf32> -> tensor<32xf32>
// CHECK: @w has shape [64, 32], the operation needs [32, 64]

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
rom.parameter @b : !rom.tensor<[32], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w bias @b {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: bias @b has shape [32], the operation needs [64]

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @k {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @k is !rom.kv<128, 2, 16, int8>, expected !rom.tensor or !rom.adapter

// -----

rom.parameter @g : !rom.tensor<[64], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<32xf32>
// CHECK: rom.rms_norm: values must have equal sizes, found 64, 32

// -----

rom.parameter @g : !rom.tensor<[64], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, groups = 3 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: 64 elements do not divide into 3 groups

// -----

rom.parameter @g : !rom.tensor<[64], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.rms_norm %x by @g {eps = 1.0e-05 : f64, groups = 4 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @g has shape [64], the norm needs [16]

// -----

rom.parameter @g : !rom.tensor<[64], float32> {key = "k"}
rom.parameter @b : !rom.tensor<[32], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.layer_norm %x by @g, @b {eps = 1.0e-05 : f64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @b has shape [32], the norm needs [64]

// -----

rom.parameter @c : !rom.tensor<[128, 8], float32> {key = "k"}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.rotary %x at %p by @c, @c {heads = 3 : i64, rotary_dim = 16 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: 64 elements do not divide into 3 heads

// -----

rom.parameter @c : !rom.tensor<[128, 8], float32> {key = "k"}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.rotary %x at %p by @c, @c {heads = 4 : i64, rotary_dim = 18 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: rotary_dim 18 must be even and at most the head width 16

// -----

rom.parameter @c : !rom.tensor<[128, 8], float32> {key = "k"}
rom.parameter @s : !rom.tensor<[128, 16], float32> {key = "k"}
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.rotary %x at %p by @c, @s {heads = 4 : i64, rotary_dim = 16 : i64, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @s has shape [128, 16], rotary_dim 16 needs [positions, 8]

// -----

rom.cache @k : !rom.kv<128, 2, 16, float32>
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
rom.append %x to @k at %p {onnx = [["n"]]} : tensor<64xf32>
// CHECK: @k takes 32 elements a token, not 64

// -----

rom.cache @k : !rom.kv<128, 2, 16, int16>
%p, %x = "test.op"() : () -> (index, !rom.quantized<2, 16, int8>)
rom.append %x to @k at %p {onnx = [["n"]]} : !rom.quantized<2, 16, int8>
// CHECK: @k takes 2 groups of int16, not 2 of int8

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%p, %x = "test.op"() : () -> (index, !rom.quantized<1, 32, int8>)
rom.append %x to @k at %p {onnx = [["n"]]} : !rom.quantized<1, 32, int8>
// CHECK: @k takes 2 groups of int8, not 1 of int8

// -----

rom.cache @k : !rom.kv<128, 2, 16, float32>
%p, %x = "test.op"() : () -> (index, tensor<48xf32>)
%y = rom.attention %x over @k, @k at %p {heads = 3 : i64, scale = 1.0 : f64, onnx = [["n"]]} : tensor<48xf32> -> tensor<48xf32>
// CHECK: 3 query heads are not a multiple of 2 KV heads

// -----

rom.cache @k : !rom.kv<128, 2, 16, float32>
%p, %x = "test.op"() : () -> (index, tensor<48xf32>)
%y = rom.attention %x over @k, @k at %p {heads = 4 : i64, scale = 1.0 : f64, onnx = [["n"]]} : tensor<48xf32> -> tensor<48xf32>
// CHECK: 4 heads of width 16 need 64 elements, found 48

// -----

%x = "test.op"() : () -> tensor<48xf32>
%y = rom.activate %x {kind = "swish", onnx = [["n"]]} : tensor<48xf32> -> tensor<48xf32>
// CHECK: unknown activation 'swish', known are silu,

// -----

%x, %y = "test.op"() : () -> (tensor<48xf32>, tensor<32xf32>)
%z = rom.add %x, %y {onnx = [["n"]]} : tensor<48xf32>, tensor<32xf32> -> tensor<48xf32>
// CHECK: rom.add: values must have equal sizes, found 48, 32, 48

// -----

%x, %y = "test.op"() : () -> (tensor<48xf32>, tensor<32xf32>)
%z = rom.mul %x, %x {onnx = [["n"]]} : tensor<48xf32>, tensor<48xf32> -> tensor<32xf32>
// CHECK: rom.mul: values must have equal sizes, found 48, 48, 32

// -----

%x = "test.op"() : () -> tensor<48xf32>
%z = rom.scale %x {factor = 1.0 : f64, onnx = [["n"]]} : tensor<48xf32> -> tensor<32xf32>
// CHECK: rom.scale: values must have equal sizes, found 48, 32

// -----

%x = "test.op"() : () -> tensor<48xf32>
%z = rom.softcap %x {cap = 1.0 : f64, onnx = [["n"]]} : tensor<48xf32> -> tensor<32xf32>
// CHECK: rom.softcap: values must have equal sizes, found 48, 32

// -----

%x = "test.op"() : () -> tensor<48xf32>
%z = rom.slice %x from 32 {onnx = [["n"]]} : tensor<48xf32> -> tensor<32xf32>
// CHECK: elements 32 to 64 do not lie inside 48

// -----

// Operators of the integer stage.

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<3, 16, int8>
// CHECK: 3 groups of 16 do not cover 64 elements

// -----

%x = "test.op"() : () -> !rom.fixed<64, 16>
%q = rom.quantize %x {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, uint8>
// CHECK: unknown format 'uint8', known are int4, int8, int16, fp8

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%x = "test.op"() : () -> !rom.fixed<32, 16>
%q = rom.quantize %x for @k {onnx = [["n"]]} : !rom.fixed<32, 16> -> !rom.quantized<2, 16, int8>
// CHECK: @k has no static scale to quantise with

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%q = "test.op"() : () -> !rom.quantized<2, 32, int8>
%a = rom.dot %q by @w {onnx = [["n"]]} : !rom.quantized<2, 32, int8> -> !rom.accumulator<64, 34>
// CHECK: a matrix takes a vector with one scale

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%q = "test.op"() : () -> !rom.quantized<1, 64, int8>
%a = rom.dot %q by @w {onnx = [["n"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<32, 34>
// CHECK: @w has shape [64, 64], the operation needs [32, 64]

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%q = "test.op"() : () -> !rom.quantized<1, 64, int8>
%a = rom.dot %q by @w {onnx = [["n"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 63>
// CHECK: 63 bits of accumulator, at most 62 are exact

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%a, %q, %r = "test.op"() : () -> (!rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<32, 16>)
%y = rom.requantize %a scaled %q, @w residual %r {pre_shift = 0 : i64, onnx = [["n"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<32, 16> -> !rom.fixed<64, 16>
// CHECK: rom.requantize: values must have equal sizes, found 64, 64, 32

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "k"}
%a, %q = "test.op"() : () -> (!rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>)
%y = rom.requantize %a scaled %q, @w {pre_shift = -1 : i64, onnx = [["n"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
// CHECK: pre_shift must not be negative

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%p, %q = "test.op"() : () -> (index, !rom.quantized<3, 16, int8>)
%s = rom.query_key %q over @k at %p {score_scale = #rom.real<1, 0>, onnx = [["n"]]} : !rom.quantized<3, 16, int8> -> !rom.scores<3, 16>
// CHECK: 3 query heads are not a multiple of 2 KV heads

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%p, %q = "test.op"() : () -> (index, !rom.quantized<4, 8, int8>)
%s = rom.query_key %q over @k at %p {score_scale = #rom.real<1, 0>, onnx = [["n"]]} : !rom.quantized<4, 8, int8> -> !rom.scores<4, 16>
// CHECK: query, keys and scores differ in heads or width

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
%p, %q = "test.op"() : () -> (index, !rom.quantized<4, 16, int8>)
%s = rom.query_key %q over @k at %p {score_scale = #rom.real<1, 0>, cap = #rom.real<1, 0>, onnx = [["n"]]} : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
// CHECK: a soft cap needs cap, cap_inverse and log2e

// -----

rom.cache @v : !rom.kv<128, 2, 16, int8>
%p, %s = "test.op"() : () -> (index, !rom.scores<4, 16>)
%q = rom.softmax %s over @v at %p {onnx = [["n"]]} : !rom.scores<4, 16> -> !rom.probabilities<2, uint8>
// CHECK: scores and probabilities differ in heads

// -----

rom.cache @v : !rom.kv<128, 2, 16, int8>
%p, %s = "test.op"() : () -> (index, !rom.scores<4, 16>)
%q = rom.softmax %s over @v at %p {onnx = [["n"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, int8>
// CHECK: unknown format 'int8', known are uint8, uint16

// -----

rom.cache @v : !rom.kv<128, 2, 16, int8>
%p, %s = "test.op"() : () -> (index, !rom.probabilities<4, uint8>)
%y = rom.weighted_sum %s over @v at %p {onnx = [["n"]]} : !rom.probabilities<4, uint8> -> !rom.fixed<32, 16>
// CHECK: the result needs 64 elements, found 32

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
rom.parameter @s : !rom.tensor<[2], float32> {key = "k"}
%q, %p = "test.op"() : () -> (tensor<64xf32>, index)
%y = rom.attention %q over @k, @k at %p {heads = 4 : i64, scale = 0.25 : f64, sink = @s, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: sink @s has shape [2], the heads need [4]

// -----

rom.state @c : !rom.state<32>
%p, %x = "test.op"() : () -> (index, tensor<64xf32>)
%y = rom.delay %x in @c at %p {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @c holds 32 elements, not 64

// -----

rom.state @c : !rom.state<64>
%p, %x = "test.op"() : () -> (index, !rom.fixed<64, 16>)
%y = rom.delay %x in @c at %p {onnx = [["n"]]} : !rom.fixed<64, 16> -> !rom.fixed<64, 12>
// CHECK: rom.delay: input and result must have equal types

// -----

rom.parameter @w : !rom.tensor<[32], float32> {key = "k"}
%x = "test.op"() : () -> tensor<64xf32>
%y = rom.tap %x by @w {onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: @w has shape [32], the operation needs [64]

// -----

rom.parameter @w : !rom.tensor<[64], float32> {key = "k"}
%x, %a = "test.op"() : () -> (tensor<64xf32>, tensor<64xf32>)
%y = rom.tap %x by @w bias @w onto %a {onnx = [["n"]]} : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
// CHECK: rom.tap adds a bias or another value, not both

// -----

rom.parameter @s : !rom.state<64> {key = "k"}
// CHECK: a state is declared with rom.state

// -----

rom.state @c : !rom.kv<128, 2, 16, int8>
// CHECK: a state has a type !rom.state or !rom.matrices, not !rom.kv<128, 2, 16, int8>

// -----

rom.state @c : !rom.state<0>
// CHECK: a state has at least 1 element

// -----

rom.state @s : !rom.matrices<4, 0, 8>
// CHECK: a state has at least 1 head and 1 element a head

// -----

rom.state @s : !rom.matrices<4, 8, 16>
%p, %x, %k = "test.op"() : () -> (index, tensor<64xf32>, tensor<32xf32>)
%y = rom.linear_attention %k, %k, %x in @s at %p {rule = "other", onnx = [["n"]]} : tensor<32xf32>, tensor<32xf32>, tensor<64xf32> -> tensor<64xf32>
// CHECK: unknown rule 'other', known are linear, gated, delta, gated_delta

// -----

rom.state @s : !rom.matrices<4, 8, 16>
%p, %x, %k, %g = "test.op"() : () -> (index, tensor<64xf32>, tensor<32xf32>, tensor<4xf32>)
%y = rom.linear_attention %k, %k, %x gates %g in @s at %p {rule = "gated_delta", onnx = [["n"]]} : tensor<32xf32>, tensor<32xf32>, tensor<64xf32>, tensor<4xf32> -> tensor<64xf32>
// CHECK: rule gated_delta takes 2 gates, found 1

// -----

rom.state @s : !rom.matrices<4, 8, 16>
%p, %x, %k = "test.op"() : () -> (index, tensor<60xf32>, tensor<32xf32>)
%y = rom.linear_attention %k, %k, %x in @s at %p {rule = "linear", onnx = [["n"]]} : tensor<32xf32>, tensor<32xf32>, tensor<60xf32> -> tensor<60xf32>
// CHECK: @s has 4 heads of 8 by 16: it takes 64 values, found 60

// -----

rom.state @s : !rom.matrices<4, 8, 16>
%p, %x, %k = "test.op"() : () -> (index, tensor<64xf32>, tensor<24xf32>)
%y = rom.linear_attention %k, %k, %x in @s at %p {rule = "linear", onnx = [["n"]]} : tensor<24xf32>, tensor<24xf32>, tensor<64xf32> -> tensor<64xf32>
// CHECK: 24 elements of queries are no heads of 8 that divide 4

// -----

rom.state @s : !rom.matrices<4, 8, 16>
%p, %x, %k = "test.op"() : () -> (index, !rom.fixed<64, 16>, !rom.quantized<1, 32, int8>)
%y = rom.linear_attention %k, %k, %x in @s at %p {rule = "linear", onnx = [["n"]]} : !rom.quantized<1, 32, int8>, !rom.quantized<1, 32, int8>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
// CHECK: queries have 1 groups, not one a head

// -----

rom.state @s : !rom.kv<128, 2, 16, int8>
// CHECK: a state has a type !rom.state or !rom.matrices

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
rom.parameter @s : !rom.tensor<[3], float32> {key = "k"}
%q, %p = "test.op"() : () -> (tensor<64xf32>, index)
%y = rom.attention %q over @k, @k at %p {heads = 4 : i64, scale = 0.25 : f64, slopes = @s, onnx = [["n"]]} : tensor<64xf32> -> tensor<64xf32>
// CHECK: slopes @s has shape [3], the heads need [4]

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
rom.parameter @s : !rom.tensor<[2], fixed32> {key = "k"}
%q, %p = "test.op"() : () -> (!rom.quantized<4, 16, int8>, index)
%y = rom.query_key %q over @k at %p {score_scale = #rom.real<12101203, 25>, slopes = @s, onnx = [["n"]]} : !rom.quantized<4, 16, int8> -> !rom.scores<4, 16>
// CHECK: slopes @s has shape [2], the heads need [4]
