// RUN: xdsl-opt -p rom-fuse-residual %s | filecheck %s

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
rom.parameter @b : !rom.tensor<[64], fixed32> {key = "b"}
rom.parameter @e : !rom.tensor<[256, 64], fixed16> {key = "e"}
rom.layer @layer {
^bb0(%p: index, %x: !rom.fixed<64, 16>):
  %c = rom.quantize %x {onnx = [["q0"], ["q1"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @w {onnx = [["m0"], ["m1"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
  %y = rom.requantize %a scaled %c, @w bias @b {pre_shift = 2 : i64, onnx = [["m0"], ["m1"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %z = rom.add %x, %y {onnx = [["m0", "a0"], ["a1"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  rom.yield %z : !rom.fixed<64, 16>
}
// A carried value is the residual; the fused operator has the names of both, each once.
// CHECK:      rom.layer @layer {
// CHECK-NEXT: ^{{.*}}(%{{\w+}}: index, [[X:%\w+]]: !rom.fixed<64, 16>):
// CHECK-NEXT:   [[C:%\w+]] = rom.quantize [[X]]
// CHECK-NEXT:   [[A:%\w+]] = rom.dot [[C]] by @w
// CHECK-NEXT:   [[Z:%\w+]] = rom.requantize [[A]] scaled [[C]], @w bias @b residual [[X]]
// CHECK-SAME:     {pre_shift = 2 : i64, onnx = {{\[}}["m0", "a0"], ["m1", "a1"]]}
// CHECK-NEXT:   rom.yield [[Z]]

rom.step @decode context 128 {
^bb0(%token: i32, %position: index):
  %x = rom.embed %token of @e {onnx = [["e"]]} : !rom.fixed<64, 16>
  %c = rom.quantize %x {onnx = [["q"]]} : !rom.fixed<64, 16> -> !rom.quantized<1, 64, int8>
  %a = rom.dot %c by @w {onnx = [["m"]]} : !rom.quantized<1, 64, int8> -> !rom.accumulator<64, 34>
  // Either side of the addition.
  %y0 = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %z0 = rom.add %y0, %x {onnx = [["a0"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // CHECK:      rom.step @decode
  // CHECK:      [[X:%\w+]] = rom.embed
  // CHECK:      [[Z0:%\w+]] = rom.requantize {{.*}}, @w residual [[X]] {{.*}}["m", "a0"]

  // Read twice: both the product and the sum are wanted.
  %y1 = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %z1 = rom.add %z0, %y1 {onnx = [["a1"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %m1 = rom.mul %z1, %y1 {onnx = [["mul"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // CHECK-NEXT: [[Y1:%\w+]] = rom.requantize {{.*}}, @w {pre_shift
  // CHECK-NEXT: [[Z1:%\w+]] = rom.add [[Z0]], [[Y1]]
  // CHECK-NEXT: [[M1:%\w+]] = rom.mul [[Z1]], [[Y1]]

  // Twice the product: there is no residual.
  %y2 = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %z2 = rom.add %y2, %y2 {onnx = [["a2"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // CHECK-NEXT: [[Y2:%\w+]] = rom.requantize {{.*}}, @w {pre_shift
  // CHECK-NEXT: [[Z2:%\w+]] = rom.add [[Y2]], [[Y2]]

  // The other operand comes after the product.
  %y3 = rom.requantize %a scaled %c, @w {pre_shift = 0 : i64, onnx = [["m"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8> -> !rom.fixed<64, 16>
  %late = rom.mul %m1, %z2 {onnx = [["late"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %z3 = rom.add %y3, %late {onnx = [["a3"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // CHECK-NEXT: [[Y3:%\w+]] = rom.requantize {{.*}}, @w {pre_shift
  // CHECK-NEXT: [[LATE:%\w+]] = rom.mul
  // CHECK-NEXT: [[Z3:%\w+]] = rom.add [[Y3]], [[LATE]]

  // One residual a requantisation: the second addition stays.
  %y4 = rom.requantize %a scaled %c, @w residual %z3 {pre_shift = 0 : i64, onnx = [["m"]]} : !rom.accumulator<64, 34>, !rom.quantized<1, 64, int8>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  %z4 = rom.add %x, %y4 {onnx = [["a4"]]} : !rom.fixed<64, 16>, !rom.fixed<64, 16> -> !rom.fixed<64, 16>
  // CHECK-NEXT: [[Y4:%\w+]] = rom.requantize {{.*}}, @w residual [[Z3]]
  // CHECK-NEXT: rom.add [[X]], [[Y4]]
  %next = rom.sample %z4 {onnx = [["h"]]} : !rom.fixed<64, 16>
  rom.emit %z4, %next : !rom.fixed<64, 16>
}
